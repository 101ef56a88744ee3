import torch

from nemotron.recipes.training.fingerprint import tensor_fingerprint, weight_fingerprint


def test_fingerprint_of_a_hand_written_tensor():
    norm, projection = tensor_fingerprint(torch.tensor([[3.0], [4.0]]))
    assert norm == 5.0
    cos1, cos2 = 0.5403023058681398, -0.4161468365471424
    assert abs(projection - (3 * cos1 + 4 * cos2) / (cos1**2 + cos2**2) ** 0.5) < 1e-15


def test_swapping_two_elements_changes_the_projection():
    tensor = torch.arange(1.0, 9.0, dtype=torch.float64)
    swapped = tensor[[1, 0, 2, 3, 4, 5, 6, 7]]
    assert tensor_fingerprint(tensor)[0] == tensor_fingerprint(swapped)[0]
    assert abs(tensor_fingerprint(tensor)[1] - tensor_fingerprint(swapped)[1]) > 0.1


def test_one_last_bit_stays_far_below_the_golden_tolerance():
    tensor = torch.linspace(-1, 1, 10_000, dtype=torch.float64)
    nudged = tensor.clone()
    nudged[5000] = torch.nextafter(nudged[5000], torch.tensor(2.0, dtype=torch.float64))
    for before, after in zip(tensor_fingerprint(tensor), tensor_fingerprint(nudged), strict=True):
        assert abs(before - after) <= 1e-14


def test_every_parameter_has_a_fingerprint():
    model = torch.nn.Linear(3, 2)
    assert list(weight_fingerprint(model)) == ["weight", "bias"]
