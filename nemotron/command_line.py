"""The arguments of a program, checked before anything reads them.

In: the command line of this process. Out: its arguments, or exit code 2 after one sentence on stderr.

A flag that is given twice is refused, because parsers take the last one and forget the others: `--sources a
--sources b` would read b alone. Arguments that are not UTF-8 are refused because paths are recorded in JSON, and
control characters because parsers repeat arguments in their messages.
"""

import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence

from nemotron.terminal import LINES, check_utf8, print_line, printable

FLAG = re.compile(r"--[a-zA-Z][^=\s]*")
NEGATION = re.compile(r"(^--|\.)no-(?=[^.]*$)")


def checked_arguments(args: Sequence[str] | None = None, *, repeatable: Collection[str] = ()) -> list[str]:
    """The arguments of a program.

    Args:
        args: without the name of the program; the command line of this process if left out.
        repeatable: flags that may be given several times, each with one value.
    Raises:
        SystemExit: with code 2, after a mistake was explained on stderr.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        check_arguments(given, repeatable)
    except ValueError as error:
        print_line(f"error: {error}")
        raise SystemExit(2) from None
    return given


def check_arguments(args: Sequence[str], repeatable: Collection[str] = ()) -> None:
    """Raise ValueError if an argument is not UTF-8 or holds a control character, or a flag is given twice."""
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


def flag_of(argument: str) -> str:
    """The flag in an argument without its value, in the spelling of the help."""
    flag = FLAG.match(argument)
    assert flag
    return flag[0].replace("_", "-")
