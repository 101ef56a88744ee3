"""What the chat program prints, where, and what stays in the conversation; a script replaces the model's output.

The format is the ChatML format of conftest.py.
"""

import io
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron import Artifact
from nemotron.directory import METADATA
from nemotron.recipes.chat import program
from nemotron.recipes.chat.program import Chat, Config, chat_program, load_chat
from nemotron.recipes.chat.tokenizer import save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import save_tokenizer
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.checkpoint import save_checkpoint
from nemotron.recipes.nemotron_h.generate import NewToken
from nemotron.recipes.nemotron_h.model import NemotronH, initialize

INTERRUPT = 5  # <SPECIAL_5> in a script: Ctrl-C is pressed here
STOP_IDS = (2, 11)


@pytest.fixture
def tokenizer(chatml_tokenizer):
    return chatml_tokenizer


@pytest.fixture
def make_chat(chatml, tokenizer):
    """make_chat(**config): a chat with an untrained model."""
    model = NemotronH(replace(MODELS["tiny"], vocab_size=tokenizer.get_vocab_size()))

    def make(system="", **changes):
        messages = [{"role": "system", "content": system}] if system else []
        return Chat(chatml, model, tokenizer, Config("unused", system=system, **changes), messages)

    return make


@pytest.fixture
def calls(monkeypatch, tokenizer):
    """What the model writes next, and the arguments of the calls of `stream`."""
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
        if any(token in STOP_IDS for token in tokens):
            raise AssertionError("the reply continues after its stop token")

    monkeypatch.setattr(program, "stream", scripted)
    return calls


def typed(monkeypatch, *lines):
    """Replace input() with these lines and then the end of input; an exception among them is raised."""
    left = list(lines)

    def read():
        if not left:
            raise EOFError
        if isinstance(left[0], Exception):
            raise left.pop(0)
        return left.pop(0)

    monkeypatch.setattr("builtins.input", read)


THINKS = "a thought\n</think>\n\nan answer\n<|im_end|>what comes after"


def test_the_answer_goes_to_stdout_and_the_thinking_to_stderr(make_chat, calls, capsys):
    calls["writes"] = [THINKS]
    program.print_reply(make_chat(), "Hi")
    printed = capsys.readouterr()
    assert printed.out == "an answer\n"
    assert printed.err == "a thought\n</think>\n"


@pytest.mark.parametrize("written", ["a</think>b<|im_end|>", "a</think> b<|im_end|>", "a</think>\n\n \nb<|im_end|>"])
def test_an_answer_is_printed_without_white_space_before_it(make_chat, calls, capsys, written):
    calls["writes"] = [written]
    program.print_reply(make_chat(), "Hi")
    assert capsys.readouterr() == ("b\n", "a</think>\n")


def test_a_token_that_spans_thinking_and_answer_is_split(make_chat, tokenizer, calls, capsys):
    calls["writes"] = ["a</think>. b<|im_end|>"]
    assert any(tokenizer.decode([token]).endswith(">.") for token in tokenizer.encode("a</think>. b").ids)
    program.print_reply(make_chat(), "Hi")
    assert capsys.readouterr() == (". b\n", "a</think>\n")


def test_what_a_terminal_would_obey_is_printed_escaped(make_chat, calls, capsys):
    calls["writes"] = ["a\x1b]0;X\x07\t\u202e\r\nb</think>c\x9b2J\x7f\n\td[red]<|im_end|>"]
    talk = make_chat()
    program.print_reply(talk, "Hi")
    assert capsys.readouterr() == ("c\\x9b2J\\x7f\n\td[red]\n", "a\\x1b]0;X\\x07\t\\u202e\\x0d\nb</think>\n")
    assert "\x1b]0;X\x07" in talk.messages[-1]["content"]  # the model reads what it wrote


def test_blank_lines_inside_an_answer_are_printed(make_chat, calls, capsys):
    calls["writes"] = ["one\n\n two\n \n<|im_end|>"]
    program.print_reply(make_chat(), "Hi /direct")
    assert capsys.readouterr().out == "one\n\n two\n"


def test_an_answer_without_thinking_is_printed_once(make_chat, calls, capsys):
    calls["writes"] = ["\n an answer<|im_end|>"]
    program.print_reply(make_chat(), "Hi /direct")
    assert capsys.readouterr() == ("an answer\n", "")


def test_the_history_has_the_question_and_the_whole_reply(make_chat, chatml, calls):
    calls["writes"] = [THINKS, "Ada<|im_end|>"]
    talk = make_chat()
    list(talk.reply("Hi"))
    assert talk.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\na thought\n</think>\n\nan answer\n"},
    ]
    list(talk.reply("What is my name? /direct"))
    assert calls["asked"][1][0] == chatml.render(
        [*talk.messages[:2], {"role": "user", "content": "What is my name? /direct"}], add_generation_prompt=True
    )


def test_decoding_samples_with_thinking_and_is_greedy_without(make_chat, calls):
    calls["writes"] = [THINKS, "yes<|im_end|>"]
    talk = make_chat(temperature=0.5, top_p=0.7, max_new_tokens=9, budget=3, grace_tokens=2)
    list(talk.reply("Hi"))
    list(talk.reply("Hi /direct"))
    (_, thinking, _), (_, unthinking, _) = calls["asked"]
    assert (thinking.temperature, thinking.top_p, thinking.max_new_tokens) == (0.5, 0.7, 9)
    assert (thinking.budget.tokens, thinking.budget.grace_tokens) == (3, 2)
    assert (unthinking.temperature, unthinking.top_p, unthinking.budget) == (0.0, 1.0, None)
    assert thinking.stop_ids == unthinking.stop_ids == STOP_IDS


def test_every_turn_has_its_own_seed(make_chat, calls):
    calls["writes"] = [THINKS] * 4
    first, other = make_chat(seed=1), make_chat(seed=2)
    for talk in (first, first, other):
        list(talk.reply("Hi"))
    seeds = [seeds for _, _, seeds in calls["asked"]]
    assert seeds == [[2], [4], [3]]


def test_by_default_a_reply_may_fill_the_context(make_chat, calls):
    calls["writes"] = [THINKS]
    talk = make_chat()
    list(talk.reply("Hi"))
    assert calls["asked"][0][1].max_new_tokens == talk.model.config.max_position_embeddings


def test_a_new_conversation_keeps_the_system_message(make_chat, chatml, calls, monkeypatch, capsys):
    calls["writes"] = ["yes<|im_end|>"] * 2
    typed(monkeypatch, "Hi", "/new", "Hello")
    program.converse(make_chat(system="Be brief. /direct"))
    for prompt, greeting in zip(calls["asked"], ("Hi", "Hello"), strict=True):
        messages = [{"role": "system", "content": "Be brief. /direct"}, {"role": "user", "content": greeting}]
        assert prompt[0] == chatml.render(messages, add_generation_prompt=True)
    assert "new conversation" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["/reason", "/direct"])
def test_a_flag_as_a_line_switches_thinking_until_the_next_flag(make_chat, calls, monkeypatch, capsys, flag):
    other = {"/reason": "/direct", "/direct": "/reason"}[flag]
    calls["writes"] = ["a</think>yes<|im_end|>"] * 3
    typed(monkeypatch, flag, "Hi", "Hi again", other, "Hi")
    program.converse(make_chat())
    thinks = [prompt.endswith("<think>\n") for prompt, _, _ in calls["asked"]]
    assert thinks == [flag == "/reason", flag == "/reason", other == "/reason"]
    state = {"/reason": "on", "/direct": "off"}
    assert f"thinking is {state[flag]}\n" in capsys.readouterr().err


def test_an_unknown_command_is_an_error_and_is_not_sent(make_chat, calls, monkeypatch, capsys):
    typed(monkeypatch, "/quit", "/exit", "never read")
    program.converse(make_chat())
    assert not calls["asked"]
    assert "error: /quit is not a command; type /reason, /direct, /new or /exit" in capsys.readouterr().err


def test_a_message_that_cannot_be_answered_is_dropped_and_the_chat_continues(make_chat, calls, monkeypatch, capsys):
    calls["writes"] = ["yes<|im_end|>"]
    typed(monkeypatch, "word " * 600, "Hello /direct")
    talk = make_chat()
    program.converse(talk)
    assert (
        "tokens, but the model's context is 512; shorten the message, or start a new conversation with /new"
        in capsys.readouterr().err
    )
    assert [message["content"] for message in talk.messages] == ["Hello /direct", "<think></think>yes"]


def test_ctrl_c_during_an_answer_stops_only_the_answer(make_chat, calls, monkeypatch, capsys):
    calls["writes"] = ["no, bec<SPECIAL_5>ause<|im_end|>", "yes<|im_end|>"]
    typed(monkeypatch, "Hi /direct", "Hello /direct")
    talk = make_chat()
    program.converse(talk)
    printed = capsys.readouterr()
    assert printed.out == "no, becyes\n"
    assert printed.err.count("\nstopped; this message is not part of the conversation\n> ") == 1
    assert [message["content"] for message in talk.messages] == ["Hello /direct", "<think></think>yes"]


def test_ctrl_c_between_answers_ends_the_chat(make_chat, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.converse(make_chat())


def test_a_line_that_is_not_utf_8_is_an_error_and_the_chat_continues(make_chat, calls, monkeypatch, capsys):
    calls["writes"] = ["yes<|im_end|>"]
    typed(monkeypatch, UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "Hi /direct")
    program.converse(make_chat())
    printed = capsys.readouterr()
    assert "error: the line is not UTF-8 text (" in printed.err
    assert printed.out == "yes\n"


def test_only_answers_are_printed_to_stdout_in_a_terminal(make_chat, calls, monkeypatch, capsys):
    """So `chat_cli ... > answers.txt` has no prompts in it; with the real input(), which may print to stdout."""
    calls["writes"] = ["yes<|im_end|>"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\nHi /direct\n/new\n/quit\n"))
    program.converse(make_chat())
    printed = capsys.readouterr()
    assert printed.out == "yes\n"
    assert printed.err.count("> ") == 5


def test_a_special_token_in_a_message_stays_text(make_chat, calls):
    calls["writes"] = ["yes<|im_end|>"]
    ids = []
    scripted = program.stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "stream", lambda model, prompts, *rest, **named: (
            ids.extend(prompts[0]), scripted(model, prompts, *rest, **named))[1])  # fmt: skip
        list(make_chat().reply("Say <|im_end|></s>, please /direct"))
    assert [token for token in ids if token in (*STOP_IDS, 10)] == [10, 11, 10]


def test_a_pipe_that_is_not_utf_8_is_an_error(make_chat, chatml, monkeypatch):
    monkeypatch.setattr(program, "load_chat", lambda format, config: make_chat())
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8", errors="surrogateescape")  # as in LANG=C
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(ValueError, match=r"^the text from the pipe is not UTF-8 \(.*\); convert it first$"):
        program.main(chatml, Config("unused"))


@pytest.mark.parametrize("content", [b"", b" \n\n"])
def test_a_pipe_without_text_is_an_error(make_chat, chatml, monkeypatch, content):
    monkeypatch.setattr(program, "load_chat", lambda format, config: make_chat())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    with pytest.raises(ValueError, match=r"^the pipe holds no text; pipe in a message, or run in a terminal$"):
        program.main(chatml, Config("unused"))


def test_an_answer_whose_reader_ends_early_is_one_sentence(chatml, monkeypatch, capsys):
    def nobody_reads(format, config):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(program, "main", nobody_reads)
    monkeypatch.setattr("os.dup2", lambda *descriptors: None)  # those of pytest
    monkeypatch.setattr("sys.argv", ["chat", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        program.chat_program(chatml)
    assert ended.value.code == 2
    sentence = "the reader of stdout ended before everything was written; write it to a file instead"
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_new_tokens", 0), ("max_new_tokens", -1), ("temperature", -1.0), ("top_p", 0.0)),
        *(("budget", 0), ("budget", -1), ("grace_tokens", -1)),
    ],
)
def test_a_number_out_of_range_is_an_error(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value} must"):
        Config("unused", **{name: value})


def test_a_closed_stdin_is_an_error(chatml, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match=r"^stdin is closed; run in a terminal, or pipe in a message$"):
        program.main(chatml, Config("unused"))


@pytest.mark.parametrize(
    ("written", "out", "thought"),
    [
        ("a thought that never ends", "\n", "a thought that never ends\n"),
        ("a</think>\n", "\n", "a</think>\n"),
        ("a</think>half an", "half an\n", "a</think>\n"),
    ],
)
def test_a_reply_that_is_cut_off_is_followed_by_a_note(make_chat, tokenizer, calls, capsys, written, out, thought):
    calls["writes"] = [written]
    program.print_reply(make_chat(), "Hi")
    num_tokens = len(tokenizer.encode(written).ids)
    note = f"(the reply was cut off after {num_tokens} tokens; raise --max-new-tokens)\n"
    assert capsys.readouterr() == (out, thought + note)


def test_a_reply_that_ends_without_an_answer_has_no_note(make_chat, calls, capsys):
    calls["writes"] = ["a</think>\n<|im_end|>"]
    program.print_reply(make_chat(), "Hi")
    assert capsys.readouterr() == ("\n", "a</think>\n")


def test_the_note_says_when_the_context_is_full(make_chat, chatml, tokenizer, calls, capsys):
    talk = make_chat()
    prompt = chatml.encode(tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True).ids
    calls["writes"] = [tokenizer.encode("a").ids * (talk.model.config.max_position_embeddings - len(prompt))]
    program.print_reply(talk, "Hi")
    assert "tokens; the context is full, start again with /new)\n" in capsys.readouterr().err


def test_the_bytes_of_a_cut_off_character_are_printed_and_kept(make_chat, tokenizer, calls, capsys):
    calls["writes"] = [tokenizer.encode("Zo\u00eb").ids[:-1]]
    talk = make_chat()
    program.print_reply(talk, "Hi /direct")
    assert capsys.readouterr().out == "Zo\ufffd\n"
    assert talk.messages[-1]["content"] == "<think></think>Zo\ufffd"


@pytest.fixture(scope="module")
def checkpoint(chatml, chatml_tokenizer, tmp_path_factory):
    """The Hugging Face directory of a random model in the ChatML format."""
    path = tmp_path_factory.mktemp("checkpoint")
    save_tokenizer(chatml_tokenizer, path / "tokenizer")
    save_chat_tokenizer(chatml, path / "tokenizer", path / "tokenizer")
    model = NemotronH(replace(MODELS["tiny"], vocab_size=chatml_tokenizer.get_vocab_size()))
    initialize(model, 0)
    save_checkpoint(model, path / "tokenizer", path / "model", chatml.stop_ids)
    return path / "model"


def test_a_second_format_chats_from_a_checkpoint_on_disk(chatml, checkpoint):
    talk = load_chat(chatml, Config(checkpoint, system="Be brief.", budget=3, grace_tokens=0, max_new_tokens=40))
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    pieces = list(talk.reply("Hi"))
    thought = "".join(text for text, is_aside in pieces if is_aside)
    assert thought.count("</think>") == 1
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]


def test_a_template_that_the_checkpoint_brings_makes_the_prompt(chatml, checkpoint, calls, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "theirs")
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{{ 'Be kind.' }}" + chatml.template, encoding="utf-8")
    calls["writes"] = [THINKS, "yes<|im_end|>"]
    talk = load_chat(chatml, Config(tmp_path / "theirs"))
    list(talk.reply("Hi"))
    list(talk.reply("Hi /direct"))
    asked = [prompt for prompt, _, _ in calls["asked"]]
    assert asked == ["Be kind." + chatml.render(talk.messages[:end], add_generation_prompt=True) for end in (1, 3)]


def test_a_bad_template_in_a_checkpoint_is_one_sentence(chatml, checkpoint, monkeypatch, capsys, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "theirs")
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["chat_cli.py", str(tmp_path / "theirs")])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi")))
    with pytest.raises(SystemExit) as stopped:
        chat_program(chatml)
    assert stopped.value.code == 2
    assert "chat_template.jinja has a syntax error in line 1: " in capsys.readouterr().err


def test_the_budget_closes_with_the_tag_of_the_format(make_chat, chatml, calls):
    calls["writes"] = [THINKS]
    talk = make_chat(budget=3)
    talk.format = replace(chatml, close_think="</why>")
    list(talk.reply("Hi"))
    assert calls["asked"][0][1].budget.close_think == "</why>"


class Checkpoint(Artifact):
    checkpoint_path: Path


class Dataset(Artifact):
    checkpoint_path: Path


@pytest.fixture
def artifact(checkpoint, tmp_path):
    """The directory of a Checkpoint, as training saves it."""
    shutil.copytree(checkpoint, tmp_path / "training" / "model")
    Checkpoint(path=tmp_path / "training", checkpoint_path=tmp_path / "training" / "model").save()
    return tmp_path / "training"


@pytest.mark.parametrize("place", [".", "model", "../link", "../link to model"])
def test_a_checkpoint_that_is_as_it_was_saved_is_loaded(chatml, artifact, place):
    (artifact.parent / "link").symlink_to(artifact)
    (artifact.parent / "link to model").symlink_to(artifact / "model")
    assert list(load_chat(chatml, Config(artifact / place, max_new_tokens=1)).reply("Hi"))


CHANGES = {
    "a weight": lambda path: flip_last_bit(path / "model" / "model.safetensors"),
    "the tokenizer": lambda path: (path / "model" / "tokenizer.json").write_text("{}"),
    "a file that the chat does not read": lambda path: (path / "model" / "generation_config.json").write_text("{}"),
    "one more file": lambda path: (path / "model" / "chat_template.jinja").touch(),
    "one file less": lambda path: (path / "model" / "generation_config.json").unlink(),
    "the metadata": lambda path: (path / METADATA).write_text(
        (path / METADATA).read_text().replace('"metrics": {}', '"metrics": {"loss": 0}')
    ),
    "damaged metadata": lambda path: (path / METADATA).write_text("{"),
    "linked metadata": lambda path: ((path / METADATA).unlink(), (path / METADATA).symlink_to("/nowhere")),
}


def flip_last_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("place", [".", "model", "../link to model"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_has_changed_since_it_was_saved_is_refused(chatml, artifact, change, place):
    (artifact.parent / "link to model").symlink_to(artifact / "model")
    CHANGES[change](artifact)
    with pytest.raises(ValueError, match=re.escape(str(artifact))) as error:
        load_chat(chatml, Config(artifact / place))
    assert re.search(r"copy the artifact again|run the step again|move it elsewhere|with a copy", str(error.value))


def test_an_artifact_of_another_type_is_not_a_checkpoint(chatml, artifact):
    (artifact / METADATA).unlink()
    Dataset(path=artifact, checkpoint_path=artifact / "model").save()
    with pytest.raises(ValueError, match=r"type='dataset', expected 'checkpoint'; give the path of a checkpoint"):
        load_chat(chatml, Config(artifact))


def test_hugging_face_files_without_metadata_are_loaded_as_they_are(chatml, artifact):
    (artifact / METADATA).unlink()
    flip_last_bit(artifact / "model" / "model.safetensors")
    for place in (artifact, artifact / "model"):
        assert list(load_chat(chatml, Config(place, max_new_tokens=1)).reply("Hi"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "error: nowhere has no checkpoint; make one with python -m chatml.finetune, and give the"),
        (["nowhere", "--device", "toaster"], "error: device=toaster is not supported; use cpu"),
        (["nowhere", "--budget", "0"], "budget=0 must be at least 1 token; leave it out for no limit"),
        (["nowhere", "--budget", "few"], "Error parsing --budget"),
    ],
)
def test_an_error_on_the_command_line_is_one_sentence_and_exit_code_2(chatml, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setenv("COLUMNS", "200")  # on one line
    monkeypatch.setattr(sys, "argv", ["chat_cli.py", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi")))
    with pytest.raises(SystemExit) as stopped:
        chat_program(chatml)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert sentence in printed.err
    assert "Traceback" not in printed.err


def test_ctrl_c_is_exit_code_130(chatml, monkeypatch):
    def interrupted(format, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["chat_cli.py", "somewhere"])
    monkeypatch.setattr(program, "main", interrupted)
    with pytest.raises(SystemExit) as stopped:
        chat_program(chatml)
    assert stopped.value.code == 130


def test_the_command_line_takes_numbers_and_the_words_for_no_limit(chatml, monkeypatch):
    configs = []
    monkeypatch.setattr(program, "main", lambda format, config: configs.append(config))
    for words in (["--budget", "none", "--max-new-tokens", "context"], ["--budget", "3", "--max-new-tokens", "9"], []):
        monkeypatch.setattr(sys, "argv", ["chat_cli.py", "somewhere", *words])
        chat_program(chatml)
    limits = [(config.budget, config.max_new_tokens) for config in configs]
    assert limits == [("none", "context"), (3, 9), ("none", "context")]
