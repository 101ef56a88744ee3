import pytest

from nemotron.recipes.curation import language
from nemotron.recipes.curation.categories import PROSE_RULES
from nemotron.recipes.curation.language import (
    MIN_ENGLISH_PROBABILITY,
    language_fault,
    language_rule,
)
from nemotron.recipes.curation.normalise import normalise_text
from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.languages import english_probability
from nemotron.recipes.sources.packages import package_documents

ENGLISH = "The function returns the shortest path between two nodes of a graph and raises an error if there is none."
GERMAN = "Die Funktion gibt den kürzesten Weg zwischen zwei Knoten eines Graphen zurück, sofern es einen solchen gibt."
FRENCH = "La fonction renvoie le plus court chemin entre deux sommets du graphe, à condition qu'il en existe un."


def kept_ids(texts, categories):
    documents = [
        Document(id, id, category, texts[id], "MIT", "here")
        for id, category in zip(sorted(texts), categories, strict=True)
    ]
    return [document.id for document in apply_to_list(documents, [language_rule()], {})]


def test_the_fault_is_the_probability():
    document = Document("a", "a", "wiki", GERMAN, "MIT", "here")
    assert language_fault(document) == f"English with a probability of {english_probability(GERMAN):.4g}"


def test_prose_in_other_languages_is_dropped():
    assert kept_ids({"a": ENGLISH, "b": GERMAN, "c": FRENCH}, ["academic"] * 3) == ["a"]


@pytest.mark.parametrize("category", ["code", "math", "multilingual", "stem-sft"])
def test_other_kinds_of_text_pass_in_any_language(category):
    assert category not in PROSE_RULES
    assert kept_ids({"a": ENGLISH, "b": GERMAN}, ["academic", category]) == ["a", "b"]


def test_a_text_at_the_bound_stays_and_one_just_below_is_dropped(monkeypatch):
    probabilities = {"at": 0.3, "below": 0.29999, "above": 0.30001}
    monkeypatch.setattr(language, "english_probability", probabilities.__getitem__)
    assert kept_ids({name: name for name in probabilities}, ["wiki"] * 3) == ["above", "at"]


def test_an_empty_text_has_a_probability():
    assert 0 <= english_probability("") <= 1


def test_no_docstring_is_so_close_to_the_bound_that_rounding_decides():
    """py3langid computes in float32, whose seventh digit differs between machines."""
    documents, _ = package_documents(900)
    texts = [normalise_text(document.text) for document in documents if document.category == "academic"]
    distances = [abs(english_probability(text) - MIN_ENGLISH_PROBABILITY) for text in texts]
    assert len(distances) > 500
    assert min(distances) > 1e-5
