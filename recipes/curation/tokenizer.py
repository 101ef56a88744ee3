"""Train the byte-level BPE tokenizer.

In: texts of the training split. Out: a tokenizer, and a directory that `AutoTokenizer.from_pretrained` reads.
Published (model card of Nemotron Nano 2): 131,072 tokens; `<unk>` is 0, `<s>` is 1, `</s>` is 2, `<SPECIAL_10>` to
`<SPECIAL_12>` are 10 to 12. We name 3 to 9 in the same way. `<s>` has its place and is never used: documents are
separated by `</s>` alone, so that a text begins after `</s>` (our choice). We do not know how the published tokenizer
splits text before merging; this one splits like GPT-2's, and makes every digit a separate token.

Any text can be encoded and decodes to itself, because all 256 bytes are tokens.
Left out: the chat template, which fine-tuning adds.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nemotron.recipes.curation.digests import sha256_of

END_OF_DOCUMENT = 2  # </s>
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", *(f"<SPECIAL_{index}>" for index in range(3, 13)))
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer: 13 special tokens, 256 bytes, then merges in the order they were learned.

    Args:
        texts: training texts; their order does not matter.
        vocab_size: number of tokens; there are fewer if the texts have no more pairs to merge.
    Raises:
        ValueError: if `vocab_size` is below MIN_VOCAB_SIZE.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size={vocab_size} must be at least {MIN_VOCAB_SIZE}, for {len(SPECIAL_TOKENS)} special tokens and "
            f"256 bytes"
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
    # A text that contains "</s>" must not end its document.
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8", newline="\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # What a text begins after here: </s> ends the document before it, and <s> is in no training text. Programs that
        # score a text from its first token, such as lm-evaluation-harness, put this token before it.
        "bos_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",  # published: both have id 0
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")


def vocabulary_digest(directory: Path) -> str:
    """One sha256 of all tokens in the order of their ids, which is the order in which the merges were learned."""
    vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    return sha256_of(sorted(vocabulary, key=vocabulary.__getitem__))


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """(n,) int32 token ids of each text, without special tokens; 1,000 texts at a time to bound memory."""
    encoded = []
    for start in range(0, len(texts), 1000):
        batch = tokenizer.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)
        encoded += [np.array(encoding.ids, dtype=np.int32) for encoding in batch]
    return encoded
