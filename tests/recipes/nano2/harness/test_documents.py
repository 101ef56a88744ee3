"""The documents of our tasks: of the evaluation split, with prompts and replies as the stages write them."""

import pytest

from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.harness.documents import exercises, grade, problems
from nemotron.recipes.sources.exercises.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("default")  # of datasets


def test_a_choice_is_the_rest_of_a_document():
    documents = problems(number=4, seed=1)["test"]
    assert len(documents) == 4
    for document in documents:
        assert all(choice.startswith(" ") and choice.endswith("</s>") for choice in document["choices"])
        assert not document["prompt"].endswith(" ")


def test_a_right_reply_is_graded_as_right_and_another_one_is_not(tmp_path):
    save_tokenizer(train_tokenizer(["some text"] * 5, vocab_size=300), tmp_path)
    documents = exercises(str(tmp_path), number=1, seed=1)["test"]
    assert [document["id"].split("/")[1] for document in documents] == [*FAMILIES]
    for document in documents:
        assert document["prompt"].endswith(CHAT.reply_prefixes[False])
        assert document["reply"].endswith("<SPECIAL_12>")
        assert grade(document, [document["reply"].removesuffix("<SPECIAL_12>")]) == {"exact_match": 1.0}
        assert grade(document, [f"{document['reply']} <think>"]) == {"exact_match": 0.0}
