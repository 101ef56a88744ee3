"""The process in which a foreign chat template is rendered, so that it can be stopped; started by template.py.

In: lines of JSON on stdin, {"template": text, "variables": {...}}. Out: for each a line of JSON on stdout, {"text"} or
{"error"}. The environment is that of transformers: jinja2's immutable sandbox, `tojson` without HTML escapes,
`raise_exception`, loop controls and the tag `generation`.
It imports nothing of this package, so it starts in a tenth of a second.

Left out: `strftime_now`, because what is learned may not depend on the day; a template that asks whether it is defined
gets its other branch, any other is an error.
"""

import json
import os
import sys
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_BYTES = 2**30  # our choice: memory of the process, where the system can limit it
MAX_CHARACTERS = 2**24  # our choice: of a rendered conversation


class Generation(Extension):
    """`{% generation %}`, which some templates put around replies: rendered as its content."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)


def answer_to(line: str) -> dict[str, str]:
    """The rendered text, or what is wrong with the template."""
    try:
        request = json.loads(line)
        text = compiled(request["template"]).render(**request["variables"])
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"has a syntax error in line {error.lineno}: {error.message}"}
    except jinja2.UndefinedError as error:
        return {"error": f"uses something that is not there: {error.message}"}
    except jinja2.TemplateError as error:  # also of raise_exception and of the sandbox
        return {"error": f"refuses this conversation: {error.message}"}
    except MemoryError:
        return {"error": f"needs more than {MAX_BYTES:,} bytes of memory"}
    except RecursionError:
        return {"error": "calls itself without an end"}
    except Exception as error:  # a template can raise anything
        return {"error": f"fails with {type(error).__name__}: {error}"}
    if len(text) > MAX_CHARACTERS:
        return {"error": f"writes {len(text):,} characters, more than {MAX_CHARACTERS:,}"}
    return {"text": text}


def main() -> None:
    """Answer line by line until the input ends."""
    if hasattr(os, "fork"):  # else on Windows, where the limit of time is the only one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    for line in sys.stdin:
        print(json.dumps(answer_to(line)), flush=True)


if __name__ == "__main__":
    main()
