"""Languages are identified in sentences, among all languages or some."""

from nemotron.recipes.sources.languages import english_probability, likeliest_language

ENGLISH = "The function returns the shortest path between two nodes of a graph and raises an error if there is none."
GERMAN = "Die Funktion gibt den kürzesten Weg zwischen zwei Knoten eines Graphen zurück, sofern es einen solchen gibt."
FRENCH = "La fonction renvoie le plus court chemin entre deux sommets du graphe, à condition qu'il en existe un."


def test_english_is_distinguished_from_german_and_french():
    assert english_probability(ENGLISH) > 0.9
    assert english_probability(GERMAN) < 0.05
    assert english_probability(FRENCH) < 0.05


def test_likeliest_language_returns_its_iso_code():
    assert [likeliest_language(text) for text in (ENGLISH, GERMAN, FRENCH)] == ["en", "de", "fr"]


def test_the_likeliest_language_is_one_of_those_asked_for() -> None:
    assert likeliest_language(GERMAN, among=("en", "fr")) in ("en", "fr")
    assert likeliest_language(GERMAN, among=("de", "fr")) == "de"
