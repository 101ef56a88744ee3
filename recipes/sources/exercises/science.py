"""Science: units, number bases and small tables, with exact fractions.

In: a number of exercises, a seed, a split, a difficulty. Out: "How many cm are 12 m?", "Write each digit of the octal
number 52 with three bits.", "Masses in g: wax 7, ice 12, salt 5. Which is the heaviest?" Every answer is confirmed by
parsing its question and computing the answer in another way.

    python -c "import nemotron.recipes.sources.exercises.science as e;print(e.generate_exercises(1, 0, split='train'))"

Left out: world knowledge other than unit prefixes, units of time and twenty chemical symbols; explanations in prose.
"""

import random
import re
from collections.abc import Callable
from fractions import Fraction

from nemotron.recipes.sources import tasks
from nemotron.recipes.sources.answers import parse_number, plain
from nemotron.recipes.sources.exercises.exercise import (
    Exercise,
    draw_exercises,
    same_text,
    same_words,
    user_exercise,
)
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item, draw_several

FAMILY = "science"
STEPS_OF_TEN = (("cm", "m", 100), ("mm", "m", 1000), ("m", "km", 1000), ("mm", "cm", 10), ("g", "kg", 1000),
                ("kg", "t", 1000), ("ml", "l", 1000))  # fmt: skip
STEPS_OF_THE_CLOCK = (("s", "min", 60), ("min", "h", 60), ("h", "days", 24), ("days", "weeks", 7))
IN_BASE_UNITS = {
    "mm": Fraction(1, 1000), "cm": Fraction(1, 100), "m": Fraction(1), "km": Fraction(1000), "g": Fraction(1, 1000),
    "kg": Fraction(1), "t": Fraction(1000), "ml": Fraction(1, 1000), "l": Fraction(1), "s": Fraction(1),
    "min": Fraction(60), "h": Fraction(3600), "days": Fraction(86400), "weeks": Fraction(604800),
}  # fmt: skip
MATERIALS = ("chalk", "clay", "copper", "cork", "glass", "gold", "ice", "iron", "salt", "sand", "wax", "wood")
SYMBOLS = {
    "hydrogen": "H", "helium": "He", "carbon": "C", "nitrogen": "N", "oxygen": "O", "sodium": "Na", "magnesium": "Mg",
    "aluminium": "Al", "silicon": "Si", "sulfur": "S", "chlorine": "Cl", "potassium": "K", "calcium": "Ca",
    "iron": "Fe", "copper": "Cu", "zinc": "Zn", "silver": "Ag", "tin": "Sn", "gold": "Au", "lead": "Pb",
}  # fmt: skip
ATOMIC_MASSES = {"H": 1, "C": 12, "N": 14, "O": 16, "S": 32}  # rounded to whole numbers


def quotient_step(numerator: int, denominator: int) -> str:
    """ "16/8 = 2"; "9/4" if there is nothing to reduce."""
    step, reduced = f"{numerator}/{denominator}", str(Fraction(numerator, denominator))
    return step if step == reduced else f"{step} = {reduced}"


def in_base(number: int, base: int) -> str:
    """The digits of a number in a base, the highest place first."""
    places = [place for place in range(12) if base**place <= number]
    return "".join(str(number // base**place % base) for place in places[::-1])


def draw_larger_unit(generator: random.Random, difficulty: int) -> Exercise:
    """Meters to centimeters: appends zeros."""
    small, large, factor = draw_item(generator, STEPS_OF_TEN)
    number = draw_integer(generator, 1, 999)
    answer = f"{number}{str(factor)[1:]}"
    steps = f"1 {large} = {factor} {small}\n{number} * {factor} = {answer}"
    return user_exercise(FAMILY, f"How many {small} are {number} {large}?", steps, answer, f"{number} {large} {small}")


def draw_smaller_unit(generator: random.Random, difficulty: int) -> Exercise:
    """Minutes to hours or centimeters to meters, as an exact fraction."""
    small, large, factor = draw_item(generator, STEPS_OF_THE_CLOCK + STEPS_OF_TEN)
    number = draw_integer(generator, 1, 200)
    steps = f"{factor} {small} = 1 {large}\n{quotient_step(number, factor)}"
    question = f"How many {large} are {number} {small}? Answer with a whole number or a reduced fraction."
    return user_exercise(FAMILY, question, steps, str(Fraction(number, factor)), f"{number} {small} {large}")


def canonical_base(number: int, base: int, other: int) -> str:
    """The task of writing a number of one base in another."""
    return f"{number} base {base} to {other}"


def draw_octal(generator: random.Random, difficulty: int) -> Exercise:
    """Octal digits as bits, one digit after the other."""
    digits = [draw_integer(generator, 1, 7)]
    digits += [draw_integer(generator, 0, 7) for _ in range(2)]
    bits = ["".join("1" if digit & bit else "0" for bit in (4, 2, 1)) for digit in digits]
    number = "".join(map(str, digits))
    steps = ", ".join(f"{digit} = {three}" for digit, three in zip(digits, bits, strict=True))
    question = f"Write each digit of the octal number {number} with three bits."
    return user_exercise(FAMILY, question, steps, " ".join(bits), canonical_base(int(number, 8), 8, 2))


def draw_base(generator: random.Random, difficulty: int) -> Exercise:
    """A number in another base; difficulty 2: from ten to two, 3: to ten, 4: between any two bases, through ten."""
    number, base, other = (draw_integer(generator, low, high) for low, high in ((4, 1023), (2, 9), (2, 9)))
    base, other = {2: (10, 2), 3: (base, 10), 4: (base, other if other != base else 10)}[difficulty]
    digits, total, rest, answer, steps = in_base(number, base), 0, number, "", []
    for digit in digits if base != 10 else ():
        steps.append(f"{total} * {base} + {digit} = {total * base + int(digit)}")
        total = total * base + int(digit)
    while rest and other != 10:
        steps.append(f"{rest} = {other} * {rest // other} + {rest % other}")
        rest, answer = rest // other, f"{rest % other}{answer}"
    question = f"Write the number {digits} of base {base} in base {other}."
    return user_exercise(FAMILY, question, "\n".join(steps), answer or str(total), canonical_base(number, base, other))


def draw_table(generator: random.Random, difficulty: int) -> Exercise:
    """A table of masses: a row, the heaviest, the lightest, or their difference. Row order belongs to the wording."""
    num_rows, largest = (3, 20) if difficulty == 1 else (5, 99)
    masses: dict[str, int] = {}
    while len(masses) < num_rows:
        material, mass = draw_item(generator, MATERIALS), draw_integer(generator, 1, largest)
        if material not in masses and mass not in masses.values():
            masses[material] = mass
    name, kind = draw_item(generator, list(masses)), draw_integer(generator, 0, 2)
    high, low, listed = max(masses.values()), min(masses.values()), ", ".join(map(str, masses.values()))
    materials = {mass: material for material, mass in masses.items()}
    if difficulty > 1:
        asked, answer = "By how many g is the heaviest heavier than the lightest?", str(high - low)
        steps = f"largest {high}, smallest {low}\n{high} - {low} = {answer}"
    elif kind == 0:
        asked, steps, answer = f"What is the mass of {name}?", f"{name} {masses[name]}", str(masses[name])
    elif kind == 1:
        asked, answer = "Which is the heaviest?", materials[high]
        steps = f"largest of {listed}: {high}\n{high} is {answer}"
    else:
        asked, answer = "Which is the lightest?", materials[low]
        steps = f"smallest of {listed}: {low}\n{low} is {answer}"
    rows = [f"{material} {mass}" for material, mass in masses.items()]
    question = f"Masses in g: {', '.join(rows)}. {asked}"
    return user_exercise(FAMILY, question, steps, answer, f"{asked} {' '.join(sorted(rows))}")


def draw_symbols(generator: random.Random, difficulty: int) -> Exercise:
    """The symbols of three of twenty elements, so in evaluation only the combinations are new."""
    names = draw_several(generator, list(SYMBOLS), 3)
    question = f"What are the chemical symbols of {names[0]}, {names[1]} and {names[2]}? Separate them by spaces."
    steps = "\n".join(f"{name}: {SYMBOLS[name]}" for name in names)
    return user_exercise(FAMILY, question, steps, " ".join(SYMBOLS[name] for name in names), f"symbols {sorted(names)}")


def draw_speed(generator: random.Random, difficulty: int) -> Exercise:
    """Distance over time as an exact fraction; at difficulty 4 the units must be converted first."""
    distance, time = draw_integer(generator, 1, 200), draw_integer(generator, 2, 60)
    metres, seconds = (distance, time) if difficulty == 3 else (distance * 1000, time * 60)
    said = f"{distance} m in {time} s" if difficulty == 3 else f"{distance} km in {time} min"
    steps = f"{metres} m in {seconds} s\n{quotient_step(metres, seconds)}"
    question = f"A train goes {said}. How many m/s is that? Answer with a whole number or a reduced fraction."
    canonical = tasks.canonical_form(tasks.Operation("/", distance, time)) if difficulty == 3 else f"{said} as m/s"
    return user_exercise(FAMILY, question, steps, str(Fraction(metres, seconds)), canonical)


def draw_formula_mass(generator: random.Random, difficulty: int) -> Exercise:
    """The mass of a molecule from the atomic masses that the question states."""
    symbols = draw_several(generator, list(ATOMIC_MASSES), 3)
    formula = [(symbol, draw_integer(generator, 2, 12)) for symbol in symbols]
    parts = [count * ATOMIC_MASSES[symbol] for symbol, count in formula]
    table = ", ".join(f"{symbol} {mass}" for symbol, mass in ATOMIC_MASSES.items())
    steps = [f"{count} * {ATOMIC_MASSES[symbol]} = {count * ATOMIC_MASSES[symbol]}" for symbol, count in formula]
    steps.append(f"{' + '.join(map(str, parts))} = {sum(parts)}")
    name = "".join(f"{symbol}{count}" for symbol, count in formula)
    question = f"Atomic masses: {table}. What is the mass of one molecule {name}?"
    return user_exercise(FAMILY, question, "\n".join(steps), str(sum(parts)), f"mass {sorted(formula)}")


KINDS: dict[int, tuple[Callable[[random.Random, int], Exercise], ...]] = {
    1: (draw_larger_unit, draw_octal, draw_table),
    2: (draw_smaller_unit, draw_base, draw_table),
    3: (draw_symbols, draw_base, draw_speed),
    4: (draw_formula_mass, draw_base, draw_speed),
}


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One question of the difficulty."""
    return draw_item(generator, KINDS[difficulty])(generator, difficulty)


# A second way to each answer ------------------------------------------------------------------------------------------


def table_of(text: str) -> dict[str, int]:
    """The rows of "wax 7, ice 12"."""
    return {name: int(mass) for name, mass in re.findall(r"(\w+) (\d+)", text)}


def convert(number: str, unit: str, other: str) -> Fraction:
    """A quantity converted to another unit, through the base unit."""
    return int(number) * IN_BASE_UNITS[unit] / IN_BASE_UNITS[other]


def mass_of_atoms(table: str, formula: str) -> int:
    """The total mass of a molecule, added up atom by atom."""
    atoms = [symbol for symbol, count in re.findall(r"([A-Z])(\d+)", formula) for _ in range(int(count))]
    return sum(table_of(table)[atom] for atom in atoms)


SOLUTIONS: dict[str, Callable[..., object]] = {
    r"How many (\w+) are (\d+) (\w+)\?.*": lambda other, number, unit: convert(number, unit, other),
    r"Write each digit of the octal number (\d+) with .+": lambda number: re.sub(
        "(...)(?=.)", r"\1 ", format(int(number, 8), f"0{3 * len(number)}b")
    ),
    r"Masses in g: (.+)\. What is the mass of (\w+)\?": lambda table, name: table_of(table)[name],
    r"Masses in g: (.+)\. Which is the heaviest\?": lambda table: max(table_of(table), key=table_of(table).__getitem__),
    r"Masses in g: (.+)\. Which is the lightest\?": lambda table: min(table_of(table), key=table_of(table).__getitem__),
    r"Masses in g: (.+)\. By how many g .+": lambda table: max(
        one - other for one in table_of(table).values() for other in table_of(table).values()
    ),
    r"What are the chemical symbols of (.+)\? .+": lambda names: " ".join(
        SYMBOLS[name] for name in re.split(", | and ", names)
    ),
    r"A train goes (\d+) (\w+) in (\d+) (\w+)\. .+": lambda distance, unit, time, time_unit: (
        convert(distance, unit, "m") / convert(time, time_unit, "s")
    ),
    r"Atomic masses: (.+)\. What is the mass of one molecule (\w+)\?": mass_of_atoms,
    r"Write the number (\d+) of base (\d+) in base (\d+)\.": lambda number, base, other: in_base(
        int(number, int(base)), int(other)
    ),
}


def is_correct(exercise: Exercise) -> bool:
    """Whether parsing the question gives the answer."""
    matches = [(re.fullmatch(form, exercise.messages[-1]["content"]), solve) for form, solve in SOLUTIONS.items()]
    return [str(solve(*match.groups())) for match, solve in matches if match] == [exercise.answer]


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties.
        difficulty: 1: powers of ten, octal digits, a table of three; 2: fractions of units, base 2, differences; 3:
            chemical symbols, to base 10, speeds; 4: molecules, between any bases, speeds in other units.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply is the answer. A fraction must be reduced; a number may be followed by the unit asked for."""
    question, answer = exercise.messages[-1]["content"], exercise.answer
    text = " ".join(plain(reply).split())
    if question.startswith("Write each digit of the octal"):  # the question does not say how to separate the groups
        groups = re.fullmatch("([01]{3})" + "[ ,]*([01]{3})" * (len(answer.split()) - 1), text)
        return groups is not None and list(groups.groups()) == answer.split()
    if question.startswith("What are the chemical symbols"):  # case matters
        return text == answer
    if question.startswith("Write the number"):  # digits of a base, not a number
        return same_text(reply, answer)
    if answer[0].isdigit():
        unit = re.search(r"[Hh]ow many (\S+)|Masses in (\w+)", question)
        number = parse_number(reply, unit=(unit[1] or unit[2]) if unit else "")
        return number == Fraction(answer) and ("/" not in answer or "." not in text.removesuffix("."))
    return same_words(reply, answer)
