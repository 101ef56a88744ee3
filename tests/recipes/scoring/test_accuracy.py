import pytest

from nemotron.recipes.scoring.accuracy import Accuracy


def test_accuracy_and_standard_error_of_hand_written_counts():
    assert Accuracy(20, 25, 0.25).metrics("choice") == {
        "choice/accuracy": 0.8,
        "choice/standard_error": pytest.approx(0.08, rel=1e-14),  # sqrt(0.8 * 0.2 / 25)
        "choice/chance_level": 0.25,
        "choice/num_asked": 25.0,
    }


@pytest.mark.parametrize("num_right", [0, 1])
def test_one_question_gives_a_finite_standard_error(num_right):
    assert Accuracy(num_right, 1, 0.5).standard_error == 0
