"""Instructions that a rule can check, as IFEval has them: "at least 50 words", "no commas", "end with this phrase".

In: the id and the arguments of an instruction, both named as in the public benchmark, and a reply. Out: whether the
reply follows it. The prompts come from the user (../prompts.py): this family generates none.

    python -c "from nemotron.recipes.sources.exercises.ifeval import *; \
        print(follows('length_constraints:number_words', {'num_words': 3, 'relation': 'at least'}, 'One two three.'))"

IFEval (arXiv 2311.07911), table 1: all 25 instructions. An exercise keeps its own in `details`, as
{"instructions": [{"id": ..., "kwargs": {...}}]}. The paper leaves much open, so each function says what it counts. Some
rules are stricter than the benchmark's program, so that a reward is harder to get by accident; all are our choice:

- A reply without a letter or digit, and one that only repeats the user's message, follow nothing.
- A keyword is a whole word. JSON is an object or a list that is not empty. A postscript, a repeated prompt and the
  heading of a section have text after them. "I" does not count as a word in capital letters.
- The dividers of paragraphs are lines, bullets have a space after them, as in Markdown, and sections count from 1.

Left out: IFEval's loose measure, instructions of later benchmarks such as "paragraphs:paragraphs", words and
keywords of languages that are written without spaces.
"""

import inspect
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

from nemotron.recipes.sources.answers import SAME_CHARACTERS
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.languages import likeliest_language

FAMILY = "ifeval"

RELATIONS = ("at least", "less than")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
COMMAS = ",，、،"
ENDS = tuple(".!?…。！？।")  # of a sentence
AROUND = "\"'“”‘’()[]{}*_"  # a sentence, before or after its end
ABBREVIATION = re.compile(r"(?!i\.$)(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|(?:[^\W\d_]\.)*[^\W\d_])\.", re.IGNORECASE)
LANGUAGES = ("af", "ar", "bg", "bn", "ca", "cs", "cy", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he",
             "hi", "hr", "hu", "id", "it", "ja", "kn", "ko", "lt", "lv", "mk", "ml", "mr", "ne", "nl", "no", "pa", "pl",
             "pt", "ro", "ru", "sk", "sl", "so", "sq", "sv", "sw", "ta", "te", "th", "tl", "tr",
             "uk", "ur", "vi", "zh")  # fmt: skip
"""Languages that are told apart: those of langdetect, with which the benchmark tells them apart."""
MIN_WORDS_OF_LANGUAGE = 10  # of English, below which py3langid errs more often than in 1 % of texts (../languages.py)

# Each has one way to match from any start, so a search takes time in proportion to the length of the reply.
PLACEHOLDER = re.compile(r"\[([^\[\]\n]+)\](?!\()")
HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,3})(?=[^\s*])([^*\n]+)(?<!\s)\1(?!\*)")
TITLE = re.compile(r"<<([^<>\n]+)>>")
JSON_FENCE = re.compile(r"```(?:json)?[ \t\r]*\n(.*)```", re.DOTALL | re.IGNORECASE)
SIX_ASTERISKS = re.compile(r"(?<!\*)\*{6}(?!\*)")
DIVIDER = re.compile(r"^[ \t]*\*{3}[ \t\r]*$", re.MULTILINE)
BLANK_LINES = re.compile(r"\n\s*\n")


# What a reply is made of ----------------------------------------------------------------------------------------------


def has_word(text: str) -> bool:
    """Whether there is a letter or a digit."""
    return any(map(str.isalnum, text))


def words(text: str) -> list[str]:
    """What white space separates, if it has a letter or a digit: "well-known" is one word, "-" is not a word."""
    return [word for word in text.split() if has_word(word)]


def comparable(text: str) -> str:
    """The text in lower case, with single spaces and with straight quotation marks."""
    return " ".join(unicodedata.normalize("NFC", text).translate(SAME_CHARACTERS).lower().split())


def bare(word: str) -> str:
    """The word in lower case, from its first letter or digit to its last."""
    return re.sub(r"^\W*(.*\w).*", r"\1", comparable(word))


def num_occurrences(text: str, phrase: str) -> int:
    """How often the phrase is in the text, as whole words, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(comparable(phrase))}(?!\w)", comparable(text)))


def num_sentences_of(text: str) -> int:
    """Sentences: they end with a mark of `ENDS` before white space, with a blank line, or with the text.

    A sentence has a letter, so the number of a list is not one. "Dr.", "U.S." and "J." do not end one, "I." does.
    """
    count = 0
    for block in BLANK_LINES.split(re.sub("([。！？।])", r"\1 ", text)):
        has_letter = False
        for word in (one.strip(AROUND) for one in block.split()):
            has_letter = has_letter or any(map(str.isalpha, word))
            if has_letter and word.endswith(ENDS) and not ABBREVIATION.fullmatch(word):
                count, has_letter = count + 1, False
        count += has_letter
    return count


def parts_between(text: str, divider: re.Pattern[str]) -> list[str]:
    """What the divider separates; a divider at the start or the end separates nothing."""
    parts = [part.strip() for part in divider.split(text)]
    return parts[0 if parts[0] else 1 : len(parts) if parts[-1] else -1]


def compare(count: int, relation: str, bound: int) -> bool:
    """Whether the count is at least, or less than, the bound."""
    return count >= bound if relation == "at least" else count < bound


# The instructions, in the order of table 1 ----------------------------------------------------------------------------


def includes_keywords(reply: str, keywords: list[str]) -> bool:
    """Every keyword is there, as a whole word, in any case."""
    return all(num_occurrences(reply, keyword) for keyword in keywords)


def has_keyword_frequency(reply: str, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword is there so often, as a whole word, in any case."""
    return compare(num_occurrences(reply, keyword), relation, frequency)


def lacks_forbidden_words(reply: str, forbidden_words: list[str]) -> bool:
    """None of the words is there as a whole word, in any case."""
    return not any(num_occurrences(reply, word) for word in forbidden_words)


def has_letter_frequency(reply: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The letter, or another character, is there so often, in any case."""
    return compare(comparable(reply).count(comparable(letter)), let_relation, let_frequency)


def is_in_language(reply: str, language: str) -> bool:
    """The language is py3langid's likeliest; a few words are English if all their letters are ASCII."""
    if language == "en" and len(words(reply)) < MIN_WORDS_OF_LANGUAGE:
        return all(letter.isascii() for letter in reply if letter.isalpha())
    return likeliest_language(reply, among=LANGUAGES) == language


def has_number_of_paragraphs(reply: str, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs, all with a word, between lines that are "***"."""
    paragraphs = parts_between(reply, DIVIDER)
    return len(paragraphs) == num_paragraphs and all(map(has_word, paragraphs))


def has_number_of_words(reply: str, num_words: int, relation: str) -> bool:
    """So many words, as `words` finds them."""
    return compare(len(words(reply)), relation, num_words)


def has_number_of_sentences(reply: str, num_sentences: int, relation: str) -> bool:
    """So many sentences, as `num_sentences_of` counts them."""
    return compare(num_sentences_of(reply), relation, num_sentences)


def has_first_word_of_paragraph(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs between blank lines; the nth begins with the word, ignoring case and punctuation."""
    paragraphs = list(filter(has_word, BLANK_LINES.split(reply)))
    if len(paragraphs) != num_paragraphs:
        return False
    return bare(words(paragraphs[nth_paragraph - 1])[0]) == bare(first_word)


def has_postscript(reply: str, postscript_marker: str) -> bool:
    """There is text before the last line that begins with the marker, and after the marker, in any case."""
    lines = reply.splitlines()
    marker = "".join(comparable(postscript_marker).split())
    for number in reversed(range(len(lines))):
        line = "".join(comparable(lines[number]).split()).lstrip("*_")
        if line.startswith(marker):
            return has_word("".join(lines[:number])) and has_word(line[len(marker) :] + "".join(lines[number + 1 :]))
    return False


def has_number_of_placeholders(reply: str, num_placeholders: int) -> bool:
    """At least so many like [address]: a word in square brackets, in one line, that is not a link."""
    return sum(map(has_word, PLACEHOLDER.findall(reply))) >= num_placeholders


def has_number_of_bullets(reply: str, num_bullets: int) -> bool:
    """Exactly so many lines that begin with *, - or +, a space and text with a word."""
    lines = reply.splitlines()
    return sum(line.split()[:1] in (["*"], ["-"], ["+"]) and has_word(line) for line in lines) == num_bullets


def has_title(reply: str) -> bool:
    """A title like <<poem of joy>>: a word in double angular brackets, in one line."""
    return any(map(has_word, TITLE.findall(reply)))


def is_constrained_response(reply: str) -> bool:
    """Exactly one of the three `OPTIONS` is there, as it is written."""
    return sum(option in reply for option in OPTIONS) == 1


def has_number_of_highlights(reply: str, num_highlights: int) -> bool:
    """At least so many like *this* or **this**: words between as many asterisks on either side, in one line."""
    return sum(has_word(match[2]) for match in HIGHLIGHT.finditer(reply)) >= num_highlights


def has_sections(reply: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections with a word, whose lines begin with the splitter and 1, 2, 3, ..., in any case."""
    heading = re.compile(
        rf"^[ \t#*_]*{re.escape(section_spliter.strip())}[ \t]*([0-9]+)(?!\w)", re.MULTILINE | re.IGNORECASE
    )
    _before, *sections = heading.split(reply)
    numbers, texts = sections[::2], sections[1::2]
    in_order = numbers == [str(number) for number in range(1, len(numbers) + 1)]
    return in_order and len(texts) >= num_sections and all(map(has_word, texts))


def is_json(reply: str) -> bool:
    """All of it is a JSON object or list that is not empty, also in a block of code."""
    text = reply.strip()
    fence = JSON_FENCE.fullmatch(text)
    try:
        value = json.loads(fence[1] if fence else text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list) and bool(value)


def refuse_constant(name: str) -> None:
    """For NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is not JSON")


def repeats_prompt(reply: str, prompt_to_repeat: str) -> bool:
    """It begins with the prompt, in any case, and then says something."""
    prompt, text = comparable(prompt_to_repeat), comparable(reply)
    after = text.removeprefix(prompt)
    return text.startswith(prompt) and has_word(after) and not after[0].isalnum()


def gives_two_responses(reply: str) -> bool:
    """Exactly two different ones, separated by six asterisks."""
    responses = [comparable(part) for part in parts_between(reply, SIX_ASTERISKS)]
    return len(responses) == len(set(responses)) == 2 and all(map(has_word, responses))


def is_uppercase_english(reply: str) -> bool:
    """It is English, and no letter is lowercase."""
    return reply.isupper() and is_in_language(reply, "en")


def is_lowercase_english(reply: str) -> bool:
    """It is English, and no letter is a capital."""
    return reply.islower() and is_in_language(reply, "en")


def has_capital_word_frequency(reply: str, capital_frequency: int, capital_relation: str) -> bool:
    """So many words of two letters or more, all of them capitals."""
    capitals = (word for word in words(reply) if word.isupper() and sum(map(str.isalpha, word)) > 1)
    return compare(len(list(capitals)), capital_relation, capital_frequency)


def ends_with_phrase(reply: str, end_phrase: str) -> bool:
    """The last words are the phrase, in any case; only quotation marks may follow."""
    text, phrase = (comparable(one).rstrip("\"' ") for one in (reply, end_phrase))
    return text.endswith(phrase) and not text[: -len(phrase)][-1:].isalnum()


def is_quoted(reply: str) -> bool:
    """The first and the last character are double quotation marks, straight or typographic."""
    text = reply.strip()
    return text[0] in '"“„' and text[-1] in '"”“'


def has_no_comma(reply: str) -> bool:
    """No comma, of any script."""
    return not set(reply) & set(COMMAS)


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": includes_keywords,
    "keywords:frequency": has_keyword_frequency,
    "keywords:forbidden_words": lacks_forbidden_words,
    "keywords:letter_frequency": has_letter_frequency,
    "language:response_language": is_in_language,
    "length_constraints:number_paragraphs": has_number_of_paragraphs,
    "length_constraints:number_words": has_number_of_words,
    "length_constraints:number_sentences": has_number_of_sentences,
    "length_constraints:nth_paragraph_first_word": has_first_word_of_paragraph,
    "detectable_content:postscript": has_postscript,
    "detectable_content:number_placeholders": has_number_of_placeholders,
    "detectable_format:number_bullet_lists": has_number_of_bullets,
    "detectable_format:title": has_title,
    "detectable_format:constrained_response": is_constrained_response,
    "detectable_format:number_highlighted_sections": has_number_of_highlights,
    "detectable_format:multiple_sections": has_sections,
    "detectable_format:json_format": is_json,
    "combination:repeat_prompt": repeats_prompt,
    "combination:two_responses": gives_two_responses,
    "change_case:english_capital": is_uppercase_english,
    "change_case:english_lowercase": is_lowercase_english,
    "change_case:capital_word_frequency": has_capital_word_frequency,
    "startend:end_checker": ends_with_phrase,
    "startend:quotation": is_quoted,
    "punctuation:no_comma": has_no_comma,
}


# The verifier ---------------------------------------------------------------------------------------------------------


def is_text(value: Any) -> bool:
    """Whether the value is a text with a letter or a digit."""
    return isinstance(value, str) and has_word(value)


ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ["keywords", "forbidden_words"],
        ("a list of words", lambda value: isinstance(value, list) and bool(value) and all(map(is_text, value))),
    ),
    **dict.fromkeys(
        ["keyword", "section_spliter", "postscript_marker", "end_phrase", "prompt_to_repeat"],
        ("a text with a letter or digit", is_text),
    ),
    **dict.fromkeys(
        ["relation", "let_relation", "capital_relation"],
        (" or ".join(map(repr, RELATIONS)), lambda value: value in RELATIONS),
    ),
    "first_word": ("one word", lambda value: is_text(value) and len(value.split()) == 1),
    "letter": ("one character", lambda value: isinstance(value, str) and len(value) == len(value.strip()) == 1),
    "language": (f"one of {', '.join(LANGUAGES)}", lambda value: value in LANGUAGES),
}
COUNT = ("a whole number from 1 on", lambda value: type(value) is int and value > 0)
"""What an argument must be, and whether a value is that; arguments that are not in `ARGUMENTS` are a COUNT."""


def fault(instruction_id: str, kwargs: dict[str, Any]) -> str | None:
    """Why an instruction cannot be checked, in one sentence; None if it can be."""
    if instruction_id not in CHECKS:
        return f"the instruction {instruction_id!r:.80} is not one that IFEval has"
    names = list(inspect.signature(CHECKS[instruction_id]).parameters)[1:]
    for name in [*names, *kwargs]:
        if name not in kwargs:
            return f"{instruction_id} lacks the argument {name!r}"
        if name not in names:
            return f"{instruction_id} has the argument {name!r:.80}, which it does not take"
        what, is_valid = ARGUMENTS.get(name, COUNT)
        if not is_valid(kwargs[name]):
            return f"{instruction_id} has {name}={kwargs[name]!r:.80}, which is not {what}"
    if kwargs.get("nth_paragraph", 0) > kwargs.get("num_paragraphs", 0):
        return f"{instruction_id} asks for paragraph {kwargs['nth_paragraph']} of {kwargs['num_paragraphs']}"
    return None


def follows(instruction_id: str, kwargs: dict[str, Any], reply: str) -> bool:
    """Whether a reply follows an instruction that has no `fault`; a reply without a word follows none."""
    return has_word(reply) and CHECKS[instruction_id](reply, **kwargs)


def constraint_results(exercise: Exercise, reply: str) -> dict[str, bool]:
    """Whether the reply follows each instruction, by its id; the second of an id is "<id>#2", the third "<id>#3".

    A reply that only repeats the user's message follows none.
    """
    is_copy = comparable(reply) == comparable(exercise.messages[-1]["content"])
    results: dict[str, bool] = {}
    seen: Counter[str] = Counter()
    for instruction in json.loads(exercise.details)["instructions"]:
        name = instruction["id"]
        seen[name] += 1
        key = name if seen[name] == 1 else f"{name}#{seen[name]}"
        results[key] = not is_copy and follows(name, instruction["kwargs"], reply)
    return results


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply follows every instruction; more than one reply can."""
    results = constraint_results(exercise, reply)
    return bool(results) and all(results.values())
