"""The arguments of a program, checked before anything reads them.

In: the command line of this process. Out: its arguments, or exit code 2 after one sentence on stderr.

A flag that is given twice is refused, because parsers take the last one and forget the others: `--sources a
--sources b` would read b alone. A flag of several values without any is refused: `--sources $FILES` with an empty
variable would read the default. Arguments that are not UTF-8 are refused because paths are recorded in JSON, and
control characters because parsers repeat arguments in their messages. If the reader of stdout ends early, as in
`--help | head -3`, that is one sentence and exit code 2 too.
"""

import importlib.util
import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from nemotron.strict import one_sentence
from nemotron.terminal import LINES, check_utf8, print_line, printable, whole_output

FLAG = re.compile(r"--[a-zA-Z][^=\s]*")
NEGATION = re.compile(r"(^--|\.)no-(?=[^.]*$)")

Parsed = TypeVar("Parsed")


def parse_arguments(config_class: type[Parsed], args: Sequence[str] | None = None, **options: Any) -> Parsed:
    """The object that the checked arguments ask for.

    Args:
        args: as in `checked_arguments`.
        options: of tyro.cli.
    Raises:
        SystemExit: after `--help`, or with code 2 after a mistake was explained on stderr.
    """
    import tyro  # slow to import

    with whole_output():
        return tyro.cli(config_class, args=checked_arguments(args), prog=program_name(), **options)


def run_program(config_class: type[Parsed], main: Callable[[Parsed], None]) -> None:
    """Call `main` with what the command line asks for; a mistake in a flag or a file is one sentence, and exit code 2.

    For a program whose `main` prints; a step has `parse_command_line` and `step_process`.

    Args:
        config_class: a dataclass; the bounds in the types of its fields, such as PositiveInt, are checked.
    """
    from pydantic import TypeAdapter

    given = parse_arguments(config_class)
    try:
        main(TypeAdapter(config_class).validate_python(vars(given)))
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        print_line(f"error: {one_sentence(error).removeprefix(f'{config_class.__name__}: ')}")
        raise SystemExit(2) from None


def check_peer(package: str, install: str, left_out_by: str = "") -> None:
    """Raise ValueError if a package is not installed that a program measures beside ours; call it before any work.

    Args:
        install: the command that installs it.
        left_out_by: flags with which the program does not need it.
    """
    if importlib.util.find_spec(package) is None:
        otherwise = f", or leave it out with {left_out_by}" if left_out_by else ""
        raise ValueError(f"{package} is not installed; run {install}{otherwise}")


def program_name() -> str | None:
    """The command that was typed, as `python -m nemotron.report`; None if it was not a module that is run by name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


def checked_arguments(
    args: Sequence[str] | None = None, *, repeatable: Collection[str] = (), several: Collection[str] = ()
) -> list[str]:
    """The arguments of a program.

    Args:
        args: without the name of the program; the command line of this process if left out.
        repeatable: flags that may be given several times, each with one value.
        several: flags that take one value or more.
    Raises:
        SystemExit: with code 2, after a mistake was explained on stderr.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        check_arguments(given, repeatable, several)
    except ValueError as error:
        print_line(f"error: {error}")
        raise SystemExit(2) from None
    return given


def check_arguments(args: Sequence[str], repeatable: Collection[str] = (), several: Collection[str] = ()) -> None:
    """Raise ValueError for an argument that is not UTF-8 or holds a control character, or a flag without effect."""
    for argument in args:
        check_utf8(argument, "argument")
        if argument != printable(argument, keep=LINES):
            raise ValueError(
                f"the argument {printable(argument)} holds a control character; remove it, or rename the file"
            )
    flags = Counter(flag_of(argument) for argument in args if FLAG.match(argument))
    for flag in flags:
        positive = NEGATION.sub(r"\1", flag)
        if positive != flag and positive in flags:
            raise ValueError(f"{positive} and {flag} are both given; give one of them")
        if flags[flag] > 1 and flag not in repeatable:
            raise ValueError(f"{flag} is given {flags[flag]} times; give it once, with all its values after it")
    for argument, following in itertools.pairwise([*args, "-h"]):
        if FLAG.fullmatch(argument) and flag_of(argument) in several and (following == "-h" or FLAG.match(following)):
            raise ValueError(
                f"{flag_of(argument)} names nothing; give at least one value after it, or leave the flag out"
            )


def flag_of(argument: str) -> str:
    """The flag in an argument without its value, in the spelling of the help."""
    flag = FLAG.match(argument)
    assert flag
    return flag[0].replace("_", "-")
