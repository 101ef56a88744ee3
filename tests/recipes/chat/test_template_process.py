"""What the process answers to one request, without the process; test_template.py has it as a process."""

import json

import jinja2
import pytest

from nemotron.recipes.chat.template_process import MAX_CHARACTERS, answer_to


def answer(template, **variables):
    return answer_to(json.dumps({"template": template, "variables": variables}))


def test_a_template_is_rendered_as_transformers_does():
    from transformers.utils.chat_template_utils import render_jinja_template

    template = """{% for message in messages %}
    {% if loop.index == 3 %}
        {% break %}
    {% endif %}
    {% generation %}
{{ message | tojson }}{{ message.content | tojson(indent=2) }}
    {% endgeneration %}
{% endfor %}
{{ strftime_now is defined and false }}"""
    messages = [{"role": "user", "content": text} for text in ("<a> & 'b' é", "2", "3")]
    (theirs,), _ = render_jinja_template([messages], chat_template=template)
    assert answer(template, messages=messages) == {"text": theirs}


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("a\n{% if %}", "has a syntax error in line 2: Expected an expression, got 'end of statement block'"),
        ("{{ nothing.at.all }}", "uses something that is not there: 'nothing' is undefined"),
        ("{{ strftime_now('%d') }}", "uses something that is not there: 'strftime_now' is undefined"),
        ("{{ raise_exception('no') }}", "refuses this conversation: no"),
        ("{{ 1 / 0 }}", "fails with ZeroDivisionError: division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without an end"),
        (f"{{{{ 'x' * {MAX_CHARACTERS + 1} }}}}", "writes 16,777,217 characters, more than 16,777,216"),
    ],
)
def test_what_is_wrong_is_one_sentence(template, error):
    assert answer(template) == {"error": error}


def test_the_sandbox_forbids_what_reaches_out_of_the_template():
    for template in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}"):
        assert set(answer(template, messages=[])) == {"error"}
    assert jinja2.__version__ >= "3.1.6"  # older sandboxes have known holes


def test_the_longest_text_is_rendered():
    assert len(answer(f"{{{{ 'x' * {MAX_CHARACTERS} }}}}")["text"]) == MAX_CHARACTERS
