"""Train the byte-level BPE tokenizer.

In: texts of the training split. Out: a tokenizer, and a directory that `AutoTokenizer.from_pretrained` reads.
Published (model card of Nemotron Nano 2): 131,072 tokens; `<unk>` is 0, `<s>` is 1, `</s>` is 2, `<SPECIAL_10>` to
`<SPECIAL_12>` are 10 to 12. What lies between them is filled up in the same spelling. How the published tokenizer
splits text before merging is not known to us: the split here is GPT-2's, with every digit a token of its own.

Any text can be encoded and comes back unchanged, because all 256 bytes are tokens.
Left out: a chat template; recipes/nano2/chat.py adds it for the stage that trains on chats.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_DOCUMENT = 2  # </s>
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", *(f"<SPECIAL_{index}>" for index in range(3, 13)))
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer: 13 special tokens, 256 bytes, then merges in the order in which they were learned.

    Args:
        texts: training texts; their order does not matter.
        vocab_size: tokens to aim for; fewer come out where the texts have no further pair to merge.
    Raises:
        ValueError: if `vocab_size` has no room for the special tokens and all bytes.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size={vocab_size}; {len(SPECIAL_TOKENS)} special tokens and 256 bytes need {MIN_VOCAB_SIZE}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A text that happens to contain "</s>" does not end its document.
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",  # published: 0 is the id of both
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """(n,) int32 token ids of each text, without special tokens; a thousand texts at a time bounds the memory."""
    encoded = []
    for start in range(0, len(texts), 1000):
        batch = tokenizer.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)
        encoded += [np.array(encoding.ids, dtype=np.int32) for encoding in batch]
    return encoded
