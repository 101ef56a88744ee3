"""Saving and loading the tokenizer of a chat model."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer, save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import SPECIAL_TOKENS, save_tokenizer


@pytest.fixture
def base(chatml_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The directory of a base model's tokenizer."""
    save_tokenizer(chatml_tokenizer, tmp_path / "base")
    return tmp_path / "base"


def test_a_saved_tokenizer_loads_and_has_the_template(chatml: ChatFormat, base: Path, tmp_path: Path) -> None:
    save_chat_tokenizer(chatml, base, tmp_path / "new" / "chat")
    loaded = load_chat_tokenizer(chatml, tmp_path / "new" / "chat")
    assert loaded.get_vocab() == Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab()
    assert min(loaded.encode("<|im_end|>").ids) >= len(SPECIAL_TOKENS)
    config = json.loads((tmp_path / "new" / "chat" / "tokenizer_config.json").read_text())
    assert config.pop("chat_template") == chatml.template
    assert config == json.loads((base / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "</s>"


def test_the_template_can_be_added_in_place(chatml: ChatFormat, base: Path) -> None:
    before = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab()
    save_chat_tokenizer(chatml, base, base)
    assert load_chat_tokenizer(chatml, base).get_vocab() == before


def test_a_tokenizer_saved_by_transformers_loads(chatml: ChatFormat, base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer  # takes seconds, which the other tests need not spend

    save_chat_tokenizer(chatml, base, base)
    theirs = AutoTokenizer.from_pretrained(base)
    theirs.save_pretrained(tmp_path / "theirs")
    assert load_chat_tokenizer(chatml, tmp_path / "theirs").get_vocab() == theirs.get_vocab()


def test_a_base_model_is_an_error_with_the_command_that_fine_tunes_it(chatml: ChatFormat, base: Path) -> None:
    sentence = r"has no chat template, so it is a base model; fine-tune it with python -m chatml\.finetune$"
    with pytest.raises(ValueError, match=sentence):
        load_chat_tokenizer(chatml, base)


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_an_error(chatml: ChatFormat, base: Path, missing: str) -> None:
    save_chat_tokenizer(chatml, base, base)
    (base / missing).unlink()
    sentence = rf"/base/{re.escape(missing)} does not exist; give the directory of a checkpoint or of a tokenizer$"
    with pytest.raises(ValueError, match=sentence):
        load_chat_tokenizer(chatml, base)
    with pytest.raises(ValueError, match=sentence):
        save_chat_tokenizer(chatml, base, base / "copy")
    assert not (base / "copy").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json is not a tokenizer \(.*\); write or download it again"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON \(.*\); write or download it again"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json must hold a JSON object, not \[\]; write or download"),
    ],
)
def test_a_damaged_file_is_an_error(chatml: ChatFormat, base: Path, name: str, content: str, sentence: str) -> None:
    save_chat_tokenizer(chatml, base, base)
    (base / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_chat_tokenizer(chatml, base)


def test_a_checkpoint_without_the_special_tokens_is_an_error(chatml: ChatFormat, base: Path) -> None:
    save_chat_tokenizer(chatml, base, base)
    text = (base / "tokenizer.json").read_text().replace("<|im_start|>", "<SPECIAL_98>")
    (base / "tokenizer.json").write_text(text)
    sentence = r"tokenizer\.json has no token <\|im_start\|> with id 10, .*; use a tokenizer from python -m chatml\.pre"
    with pytest.raises(ValueError, match=sentence):
        load_chat_tokenizer(chatml, base)
