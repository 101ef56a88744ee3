"""What the chat says, to whom, and what it remembers, while a script stands in for what the model would write."""

import io
from dataclasses import replace

import pytest

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2 import chat_cli
from nemotron.recipes.nano2.chat import STOP_TOKENS, encode_chat, render
from nemotron.recipes.nano2.chat_cli import Chat, Config
from nemotron.recipes.nano2.sizes import SIZES
from nemotron.recipes.nemotron_h.generate import NewToken
from nemotron.recipes.nemotron_h.model import NemotronH

INTERRUPT = 5  # <SPECIAL_5> in a script: here Ctrl-C is pressed


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["</think>. " * 50], 300)


@pytest.fixture
def calls(monkeypatch, tokenizer):
    """The script of what the model writes next, and the arguments that it was asked with."""
    calls = {"writes": [], "asked": []}

    def scripted(model, prompts, sampling, seeds):
        calls["asked"].append((tokenizer.decode(prompts[0], skip_special_tokens=False), sampling, seeds))
        tokenizer.encode_special_tokens = False
        written = calls["writes"].pop(0)
        tokens = tokenizer.encode(written).ids if isinstance(written, str) else written
        tokenizer.encode_special_tokens = True
        for token in tokens:
            if token == INTERRUPT:
                raise KeyboardInterrupt
            yield [NewToken(0, token, 0.0, False)]
            if token in sampling.stop_ids:
                return
        if any(token in STOP_TOKENS for token in tokens):
            raise AssertionError("the reply goes on after its stop token")

    monkeypatch.setattr(chat_cli, "stream", scripted)
    return calls


def chat(tokenizer, system="", **changes):
    config = Config("unused", system=system, **changes)
    messages = [{"role": "system", "content": system}] if system else []
    return Chat(NemotronH(replace(SIZES["tiny"].model, vocab_size=300)), tokenizer, config, messages)


def typed(monkeypatch, *lines):
    """Lines from a terminal, and then its end; an exception among them is raised."""
    left = list(lines)

    def read():
        if not left:
            raise EOFError
        if isinstance(left[0], Exception):
            raise left.pop(0)
        return left.pop(0)

    monkeypatch.setattr("builtins.input", read)


THINKS = "a thought\n</think>\n\nan answer\n<SPECIAL_12>what comes after"


def test_the_answer_goes_to_stdout_and_the_thought_to_stderr(tokenizer, calls, capsys):
    calls["writes"] = [THINKS]
    chat_cli.say(chat(tokenizer), "Hi")
    said = capsys.readouterr()
    assert said.out == "an answer\n"
    assert said.err == "a thought\n</think>\n"


@pytest.mark.parametrize(
    "written", ["a</think>b<SPECIAL_12>", "a</think> b<SPECIAL_12>", "a</think>\n\n \nb<SPECIAL_12>"]
)
def test_no_white_space_comes_before_an_answer_however_it_falls_into_tokens(tokenizer, calls, capsys, written):
    calls["writes"] = [written]
    chat_cli.say(chat(tokenizer), "Hi")
    assert capsys.readouterr() == ("b\n", "a</think>\n")


def test_where_one_token_ends_the_thought_and_begins_the_answer_each_part_is_said_once(tokenizer, calls, capsys):
    calls["writes"] = ["a</think>. b<SPECIAL_12>"]
    assert any(tokenizer.decode([token]).endswith(">.") for token in tokenizer.encode("a</think>. b").ids)
    chat_cli.say(chat(tokenizer), "Hi")
    assert capsys.readouterr() == (". b\n", "a</think>\n")


def test_lines_inside_an_answer_stay(tokenizer, calls, capsys):
    calls["writes"] = ["one\n\n two\n \n<SPECIAL_12>"]
    chat_cli.say(chat(tokenizer), "Hi /no_think")
    assert capsys.readouterr().out == "one\n\n two\n"


def test_an_answer_without_thinking_is_said_once(tokenizer, calls, capsys):
    calls["writes"] = ["\n an answer<SPECIAL_12>"]
    chat_cli.say(chat(tokenizer), "Hi /no_think")
    assert capsys.readouterr() == ("an answer\n", "")


def test_the_history_holds_what_was_asked_and_the_whole_reply(tokenizer, calls):
    calls["writes"] = [THINKS, "Ada<SPECIAL_12>"]
    talk = chat(tokenizer)
    list(talk.reply("Hi"))
    assert talk.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\na thought\n</think>\n\nan answer\n"},
    ]
    list(talk.reply("What is my name? /no_think"))
    assert calls["asked"][1][0] == render(
        [*talk.messages[:2], {"role": "user", "content": "What is my name? /no_think"}], add_generation_prompt=True
    )


def test_with_thinking_it_samples_and_without_it_takes_the_likeliest(tokenizer, calls):
    calls["writes"] = [THINKS, "yes<SPECIAL_12>"]
    talk = chat(tokenizer, temperature=0.5, top_p=0.7, max_new_tokens=9, budget=3, grace_tokens=2)
    list(talk.reply("Hi"))
    list(talk.reply("Hi /no_think"))
    (_, thinking, _), (_, unthinking, _) = calls["asked"]
    assert (thinking.temperature, thinking.top_p, thinking.max_new_tokens) == (0.5, 0.7, 9)
    assert (thinking.budget.tokens, thinking.budget.grace_tokens) == (3, 2)
    assert (unthinking.temperature, unthinking.top_p, unthinking.budget) == (0.0, 1.0, None)
    assert thinking.stop_ids == unthinking.stop_ids == STOP_TOKENS


def test_every_turn_draws_with_a_seed_of_its_own(tokenizer, calls):
    calls["writes"] = [THINKS] * 4
    first, other = chat(tokenizer, seed=1), chat(tokenizer, seed=2)
    for talk in (first, first, other):
        list(talk.reply("Hi"))
    seeds = [seeds for _, _, seeds in calls["asked"]]
    assert seeds == [[2], [4], [3]]


def test_without_a_limit_a_reply_may_fill_the_context(tokenizer, calls):
    calls["writes"] = [THINKS]
    talk = chat(tokenizer)
    list(talk.reply("Hi"))
    assert calls["asked"][0][1].max_new_tokens == talk.model.config.max_position_embeddings


def test_the_system_message_is_read_and_outlives_a_new_conversation(tokenizer, calls, monkeypatch, capsys):
    calls["writes"] = ["yes<SPECIAL_12>"] * 2
    typed(monkeypatch, "Hi", "/new", "Hello")
    chat_cli.converse(chat(tokenizer, system="Be brief. /no_think"))
    for prompt, greeting in zip(calls["asked"], ("Hi", "Hello"), strict=True):
        messages = [{"role": "system", "content": "Be brief. /no_think"}, {"role": "user", "content": greeting}]
        assert prompt[0] == render(messages, add_generation_prompt=True)
    assert "a new conversation" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["/think", "/no_think"])
def test_a_line_with_a_flag_switches_the_thinking_until_the_next(tokenizer, calls, monkeypatch, capsys, flag):
    other = {"/think": "/no_think", "/no_think": "/think"}[flag]
    calls["writes"] = ["a</think>yes<SPECIAL_12>"] * 3
    typed(monkeypatch, flag, "Hi", "Hi again", other, "Hi")
    chat_cli.converse(chat(tokenizer))
    thinks = [prompt.endswith("<think>\n") for prompt, _, _ in calls["asked"]]
    assert thinks == [flag == "/think", flag == "/think", other == "/think"]
    state = {"/think": "on", "/no_think": "off"}
    assert f"thinking is {state[flag]}\n" in capsys.readouterr().err


def test_a_line_that_looks_like_a_command_and_is_none_is_not_sent(tokenizer, calls, monkeypatch, capsys):
    typed(monkeypatch, "/quit", "/exit", "never read")
    chat_cli.converse(chat(tokenizer))
    assert not calls["asked"]
    assert "error: /quit is no command; /think, /no_think, /new and /exit work here" in capsys.readouterr().err


def test_what_cannot_be_answered_is_forgotten_and_the_chat_goes_on(tokenizer, calls, monkeypatch, capsys):
    calls["writes"] = ["yes<SPECIAL_12>"]
    typed(monkeypatch, "word " * 600, "Hello /no_think")
    talk = chat(tokenizer)
    chat_cli.converse(talk)
    assert "tokens and the model's context 512; shorten the message, or begin anew with /new" in capsys.readouterr().err
    assert [message["content"] for message in talk.messages] == ["Hello /no_think", "<think></think>yes"]


def test_ctrl_c_stops_an_answer_and_not_the_chat(tokenizer, calls, monkeypatch, capsys):
    calls["writes"] = ["no, bec<SPECIAL_5>ause<SPECIAL_12>", "yes<SPECIAL_12>"]
    typed(monkeypatch, "Hi /no_think", "Hello /no_think")
    talk = chat(tokenizer)
    chat_cli.converse(talk)
    said = capsys.readouterr()
    assert said.out == "no, becyes\n"
    assert said.err.count("\nstopped; this message is forgotten\n> ") == 1
    assert [message["content"] for message in talk.messages] == ["Hello /no_think", "<think></think>yes"]


def test_ctrl_c_between_answers_leaves(tokenizer, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat_cli.converse(chat(tokenizer))


def test_a_line_that_is_no_utf_8_is_refused_and_the_chat_goes_on(tokenizer, calls, monkeypatch, capsys):
    calls["writes"] = ["yes<SPECIAL_12>"]
    typed(monkeypatch, UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "Hi /no_think")
    chat_cli.converse(chat(tokenizer))
    said = capsys.readouterr()
    assert "error: the line is no UTF-8 text (" in said.err
    assert said.out == "yes\n"


def test_only_answers_go_to_stdout_of_a_terminal(tokenizer, calls, monkeypatch, capsys):
    """So `chat_cli ... > answers.txt` holds no prompts, with the input that Python has, not with a stand-in."""
    calls["writes"] = ["yes<SPECIAL_12>"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\nHi /no_think\n/new\n/quit\n"))
    chat_cli.converse(chat(tokenizer))
    said = capsys.readouterr()
    assert said.out == "yes\n"
    assert said.err.count("> ") == 5


def test_a_special_token_in_a_message_stays_text(tokenizer, calls):
    calls["writes"] = ["yes<SPECIAL_12>"]
    ids = []
    scripted = chat_cli.stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_cli, "stream", lambda model, prompts, *rest, **named: (
            ids.extend(prompts[0]), scripted(model, prompts, *rest, **named))[1])  # fmt: skip
        list(chat(tokenizer).reply("Say <SPECIAL_12></s>, please /no_think"))
    assert [token for token in ids if token in (*STOP_TOKENS, 10)] == [10, 11, 11]


def test_what_is_no_utf_8_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(chat_cli, "loaded", lambda config: chat(tokenizer))
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8", errors="surrogateescape")  # as in LANG=C
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(ValueError, match=r"^what comes through the pipe is no UTF-8 text \(.*\); convert it first$"):
        chat_cli.main(Config("unused"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_new_tokens", 0), ("max_new_tokens", -1), ("temperature", -1.0), ("top_p", 0.0)),
        *(("budget", 0), ("budget", -1), ("grace_tokens", -1)),
    ],
)
def test_numbers_out_of_their_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value} must"):
        Config("unused", **{name: value})


def test_a_closed_stdin_is_a_sentence(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match=r"^stdin is closed; write in a terminal, or pipe in a message$"):
        chat_cli.main(Config("unused"))


@pytest.mark.parametrize(
    ("written", "out", "thought"),
    [
        ("a thought that never ends", "\n", "a thought that never ends\n"),
        ("a</think>\n", "\n", "a</think>\n"),
        ("a</think>half an", "half an\n", "a</think>\n"),
    ],
)
def test_a_reply_that_is_cut_off_says_so(tokenizer, calls, capsys, written, out, thought):
    calls["writes"] = [written]
    chat_cli.say(chat(tokenizer), "Hi")
    num_tokens = len(tokenizer.encode(written).ids)
    note = f"(the reply was cut off after {num_tokens} tokens; give it more --max-new-tokens)\n"
    assert capsys.readouterr() == (out, thought + note)


def test_a_reply_that_ends_without_an_answer_is_not_said_to_be_cut_off(tokenizer, calls, capsys):
    calls["writes"] = ["a</think>\n<SPECIAL_12>"]
    chat_cli.say(chat(tokenizer), "Hi")
    assert capsys.readouterr() == ("\n", "a</think>\n")


def test_a_reply_that_is_cut_off_where_the_context_ends_names_the_context(tokenizer, calls, capsys):
    talk = chat(tokenizer)
    prompt = encode_chat(tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True).ids
    calls["writes"] = [tokenizer.encode("a").ids * (talk.model.config.max_position_embeddings - len(prompt))]
    chat_cli.say(talk, "Hi")
    assert "tokens; the model's context is full, begin anew with /new)\n" in capsys.readouterr().err


def test_the_bytes_of_a_character_that_is_cut_off_are_said_and_remembered(tokenizer, calls, capsys):
    calls["writes"] = [tokenizer.encode("Zo\u00eb").ids[:-1]]
    talk = chat(tokenizer)
    chat_cli.say(talk, "Hi /no_think")
    assert capsys.readouterr().out == "Zo\ufffd\n"
    assert talk.messages[-1]["content"] == "<think></think>Zo\ufffd"
