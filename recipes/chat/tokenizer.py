"""The tokenizer of a chat model: saved with the chat template of its format, and loaded again.

In: a directory with tokenizer.json and tokenizer_config.json. Out: a copy with the template, or the tokenizer.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.nemotron_h.checkpoint import GENERATION_FILE, MORE_TOKENIZER_FILES, load_tokenizer
from nemotron.strict import parse_json_object, read_file


def save_chat_tokenizer(format: ChatFormat, source: Path, directory: Path) -> None:
    """Copy a tokenizer into `directory`, which is created, and add the chat template if it does not bring one.

    The end-of-text token stays as it is; a reply ends at any of `format.stop_tokens`. A template that the tokenizer
    brings is kept in the files in which it is: `format_of` (template.py) then uses it in place of the format's. Maps of
    special tokens and settings of generation are kept too.

    Args:
        source: directory with tokenizer.json and tokenizer_config.json; may be `directory` itself.
    Raises:
        ValueError: if a file is missing or damaged, or the special tokens of the format are missing.
    """
    config = read_tokenizer_config(source)
    read_tokenizer(format, source)
    vocabulary = (source / "tokenizer.json").read_bytes()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_bytes(vocabulary)
    for name in (*MORE_TOKENIZER_FILES, GENERATION_FILE):
        if (source / name).is_file():
            content = (source / name).read_bytes()
            (directory / name).write_bytes(content)
    if not (source / "chat_template.jinja").is_file() and not config.get("chat_template"):
        config = {**config, "chat_template": format.template}
    written = json.dumps(config, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(written, encoding="utf-8", newline="\n")


def load_chat_tokenizer(format: ChatFormat, directory: Path) -> Tokenizer:
    """The tokenizer of a chat model; special tokens that a text spells out stay text.

    Raises:
        ValueError: if the tokenizer or chat template is missing, or the tokenizer lacks special tokens of the format.
    """
    config = read_tokenizer_config(directory)
    # transformers saves the template to chat_template.jinja.
    if not config.get("chat_template") and not (directory / "chat_template.jinja").is_file():
        raise ValueError(
            f"{directory} has no chat template, so it is a base model; fine-tune it with {format.finetune_command}"
        )
    tokenizer = read_tokenizer(format, directory)
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    Raises:
        ValueError: if the file is missing or not a JSON object.
    """
    path = directory / "tokenizer_config.json"
    content = read_file(path, advice="give the directory of a checkpoint or of a tokenizer")
    return parse_json_object(content, str(path), advice="write or download it again")


def read_tokenizer(format: ChatFormat, directory: Path) -> Tokenizer:
    """The tokenizer in tokenizer.json.

    Raises:
        ValueError: as `load_tokenizer`, or if the special tokens of the format are missing.
    """
    tokenizer = load_tokenizer(directory)
    format.check_special_tokens(tokenizer, str(directory / "tokenizer.json"))
    return tokenizer
