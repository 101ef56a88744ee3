import pytest

from nemotron.recipes.curation import language
from nemotron.recipes.curation.filters import PROSE, apply_filter
from nemotron.recipes.curation.language import MIN_ENGLISH_PROBABILITY, english_probability, language_filter
from nemotron.recipes.curation.normalise import normalise_text
from nemotron.recipes.sources.dataframes import daft
from nemotron.recipes.sources.packages import package_documents

ENGLISH = "The function returns the shortest path between two nodes of a graph and raises an error if there is none."
GERMAN = "Die Funktion gibt den kürzesten Weg zwischen zwei Knoten eines Graphen zurück, sofern es einen solchen gibt."
FRENCH = "La fonction renvoie le plus court chemin entre deux sommets du graphe, à condition qu'il en existe un."


def kept_ids(texts, categories):
    frame = daft.from_pydict({"id": sorted(texts), "text": [texts[i] for i in sorted(texts)], "category": categories})
    return sorted(apply_filter(frame, language_filter(), {}).to_pydict()["id"])


def test_english_is_told_from_german_and_french():
    assert english_probability(ENGLISH) > 0.9
    assert english_probability(GERMAN) < 0.05
    assert english_probability(FRENCH) < 0.05


def test_other_languages_are_dropped_from_prose():
    assert kept_ids({"a": ENGLISH, "b": GERMAN, "c": FRENCH}, ["academic"] * 3) == ["a"]


@pytest.mark.parametrize("category", ["code", "math", "multilingual", "stem-sft"])
def test_what_is_no_prose_passes_in_any_language(category):
    assert category not in PROSE
    assert kept_ids({"a": ENGLISH, "b": GERMAN}, ["academic", category]) == ["a", "b"]


def test_a_probability_of_exactly_the_bound_stays_and_one_just_below_goes(monkeypatch):
    probabilities = {"at": 0.3, "below": 0.29999, "above": 0.30001}
    monkeypatch.setattr(language, "english_probability", probabilities.__getitem__)
    assert kept_ids({name: name for name in probabilities}, ["wiki"] * 3) == ["above", "at"]


def test_an_empty_text_gives_a_probability_and_no_error():
    assert 0 <= english_probability("") <= 1


def test_no_decision_about_a_docstring_hangs_on_the_last_digits_of_a_float():
    """py3langid computes in float32, whose seventh digit differs by machine."""
    documents, _ = package_documents(900)
    texts = [normalise_text(document.text) for document in documents if document.category == "academic"]
    distances = [abs(english_probability(text) - MIN_ENGLISH_PROBABILITY) for text in texts]
    assert len(distances) > 500
    assert min(distances) > 1e-5
