"""Documents in training order, with their token ids and their side of the train/validation split, on disk.

In: a dataframe of documents that every rule kept. Out: files of documents in training order, with splits and numbers of
tokens; the tokenizer; and the tokens of each category end to end, from which training rows are read.

No more than a piece of the texts is in memory: a first pass gives each document its file by its place in the training
order, and a second one sorts and encodes each file by itself. What is held of every document are its id, its module and
its category, not its text or its tokens.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from nemotron.recipes.curation.categories import TEMPLATED
from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.packing import TokenFiles, TokenStream, concatenate_documents, write_tokens
from nemotron.recipes.curation.split import held_out_modules
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, encode_documents, train_tokenizer
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.dataframes import Task, daft, read_files, rows_of, run_tasks, write_dataframe
from nemotron.recipes.sources.documents import read_documents, write_documents

TOKENIZER_BYTES = 64 << 20
"""Our choice: text that the tokenizer is trained on, at most; all of the training split at tiny and small."""
FILE_BYTES = 32 << 20
"""Our choice: text of a file of documents in training order, which is sorted in memory."""
SAMPLE_DIGITS, KEY_BYTES = 16, 8
"""Of a digest or key, what is compared where a few equal ones do no harm."""
FACTS = pa.schema(
    {
        **dict.fromkeys(("id", "module", "category", "split", "licence", "origin"), pa.string()),
        **dict.fromkeys(("num_tokens", "bucket"), pa.int32()),
    }
)
"""The columns of the record of all documents."""


Counts = dict[str, dict[str, int]]


class DocumentTokens(NamedTuple):
    """The tokens of one document, which are read when a part of them is asked for."""

    files: TokenFiles
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice) -> list[int]:  # type: ignore[override]
        start, stop, _ = part.indices(len(self))
        return self.files[self.start + start : self.start + stop].tolist()


class DocumentSequence(Sequence[tuple[str, Sequence[int]]]):
    """(module, tokens) of documents; what is held of each are its module and where its tokens are."""

    def __init__(
        self,
        streams: Sequence[TokenFiles],
        modules: pa.ChunkedArray,
        stream: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
    ) -> None:
        self.streams, self.modules = streams, modules
        self.stream, self.starts, self.lengths = stream, starts, lengths

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        start = int(self.starts[index])
        tokens = DocumentTokens(self.streams[self.stream[index]], start, start + int(self.lengths[index]))
        return self.modules[index].as_py(), tokens


@dataclass(frozen=True)
class TokenizedDocuments:
    """The documents that every filter kept, in training order."""

    directory: Path
    """Holds texts/<number>.parquet, the documents; facts.parquet, their record; tokens/, see `tokens_of`."""
    counts: tuple[Counts, ...]
    """For each file of texts: "<split>/<category>" -> its documents, their tokens, and the tokens of its stream."""

    @property
    def texts(self) -> list[Path]:
        """The files with the documents' texts."""
        return [self.directory / "texts" / f"{number:05d}.parquet" for number in range(len(self.counts))]

    @property
    def facts_path(self) -> Path:
        """The file with every document, without its text."""
        return self.directory / "facts.parquet"

    @cached_property
    def categories(self) -> list[str]:
        """The categories, by name."""
        return sorted({name.partition("/")[2] for counts in self.counts for name in counts})

    def tokens_of(self, split: str, category: str) -> TokenFiles:
        """The documents of a category in one split, each with its end-of-document token, end to end."""
        name = f"{split}/{category}"
        numbers = [number for number, counts in enumerate(self.counts) if name in counts]
        paths = [self.directory / "tokens" / name / f"{number:05d}.parquet" for number in numbers]
        return TokenFiles(paths, [self.counts[number][name]["stream"] for number in numbers])

    def documents(self, split: str, category: str | None = None, by: str = "module") -> "DocumentSequence":
        """(module, tokens) of each document of one split, of one or of all categories, in training order.

        Args:
            by: "module", or "id" for documents that each count as a module.
        """
        streams = [self.tokens_of(split, name) for name in self.categories]
        table = pq.read_table(self.facts_path, columns=[by, "category", "split", "num_tokens"])
        table = table.filter(pc.equal(table["split"], split))
        stream = pc.index_in(table["category"], value_set=pa.array(self.categories)).to_numpy()
        lengths = table["num_tokens"].to_numpy().astype(np.int64)
        starts = np.zeros(len(lengths), dtype=np.int64)
        for number, name in enumerate(self.categories):
            with_end = lengths[stream == number] + (name not in TEMPLATED)
            starts[stream == number] = np.cumsum(with_end) - with_end
        chosen = (
            np.arange(len(stream)) if category is None else np.flatnonzero(stream == self.categories.index(category))
        )
        return DocumentSequence(streams, table[by].take(chosen), stream[chosen], starts[chosen], lengths[chosen])


def training_order(id: str, origin: str, seed: int) -> tuple[str, str]:
    """What documents are sorted by for training."""
    # Generated problems grow harder with their number; everything else comes in an arbitrary but stable order.
    return id.rpartition("/")[2] if origin == "procedural" else digest_of(seed, id), id


def split_and_tokenize(
    documents: daft.DataFrame, directory: Path, *, held_out_share: float, vocab_size: int, seed: int
) -> tuple[TokenizedDocuments, Tokenizer]:
    """The documents in training order with their split and tokens, and the tokenizer of the training split.

    Args:
        directory: where the files go.
        held_out_share: share of the modules whose documents go to the validation split.
        vocab_size: number of tokens in the tokenizer's vocabulary.
        seed: picks the validation modules, the order, and the sample that the tokenizer is trained on.
    """
    files = write_dataframe(documents, directory / "kept")
    documents = read_files(files)
    size = daft.col("text").length_bytes().alias("size")
    known = documents.select("id", "origin", "module", "category", size).to_arrow()
    held_out = held_out_modules(rows_of(known, "module", "category"), held_out_share, seed)
    (directory / "held_out.json").write_text(json.dumps(sorted(held_out)), encoding="utf-8", newline="\n")

    in_training = ((id, size) for id, module, size in rows_of(known, "id", "module", "size") if module not in held_out)
    tokenizer = train_tokenizer(sampled_texts(documents, digest_bound(in_training, seed), held_out, seed), vocab_size)
    (directory / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8", newline="\n")

    # A first pass over the texts gives each document to its file, a second one sorts and encodes each file.
    starts = first_keys(rows_of(known, "id", "origin", "size"), len(known), seed)
    del known
    shared = {"directory": str(directory), "seed": seed}
    pieces = [{"path": str(path), "number": number, "starts": starts} for number, path in enumerate(files)]
    run_tasks(distribute, [shared | piece for piece in pieces])
    counts = run_tasks(sort_and_encode, [shared | {"number": number} for number in range(len(starts))])
    return joined(directory, counts), tokenizer


def digest_bound(documents: Iterable[tuple[str, int]], seed: int) -> str | None:
    """The digest up to which documents are in the tokenizer's sample; None if all of them are.

    Args:
        documents: (id, bytes) of each document of the training split.
    """
    keyed = sorted((digest_of("tokenizer", seed, id)[:SAMPLE_DIGITS], size) for id, size in documents)
    total = 0
    for digest, size in keyed:
        total += size
        if total > TOKENIZER_BYTES:
            return digest
    return None


def sampled_texts(documents: daft.DataFrame, bound: str | None, held_out: Set[str], seed: int) -> Iterator[str]:
    """The texts of the tokenizer's sample: those of the training split with the smallest digests of their ids.

    A text that crosses `TOKENIZER_BYTES` is left out, and so are all after it.
    """
    for batch in documents.select("id", "module", "text").to_arrow_iter():
        for id, module, text in rows_of(batch, "id", "module", "text"):
            if module in held_out:
                continue
            if bound is None or digest_of("tokenizer", seed, id)[:SAMPLE_DIGITS] < bound:
                yield text


def file_key(id: str, origin: str, seed: int) -> str:
    """The first bytes of what documents are sorted by, in hexadecimal: sorted by it, files follow on each other."""
    return training_order(id, origin, seed)[0].encode()[:KEY_BYTES].hex()


def first_keys(documents: Iterable[tuple[str, str, int]], number: int, seed: int) -> list[str]:
    """The first key of each file of the training order, so that a file has about `FILE_BYTES`.

    Args:
        documents: (id, origin, bytes) of each document.
        number: of the documents.
    """
    keyed = np.empty(number, dtype=[("key", f"S{2 * KEY_BYTES}"), ("size", np.int64)])
    for index, (id, origin, size) in enumerate(documents):
        keyed[index] = file_key(id, origin, seed), size
    keyed.sort(order="key")
    file_of = np.cumsum(keyed["size"]) // FILE_BYTES
    first = np.flatnonzero(np.diff(file_of, prepend=-1))
    return sorted({key.decode() for key in keyed["key"][first]})


def distribute(task: Task) -> Task:
    """Write the documents of one file to a file for each part of the training order."""
    parts: dict[int, list[Document]] = {}
    for document in read_documents([Path(task["path"])]):
        key = file_key(document.id, document.origin, task["seed"])
        parts.setdefault(max(0, bisect_right(task["starts"], key) - 1), []).append(document)
    for number, documents in parts.items():
        directory = Path(task["directory"]) / "parts" / f"{number:05d}"
        write_documents(directory / f"{task['number']:05d}.parquet", documents)
    return {}


def sort_and_encode(task: Task) -> Task:
    """Sort the documents of one part of the training order, encode them and write them with `write_part`."""
    directory = Path(task["directory"])
    pieces = sorted((directory / "parts" / f"{task['number']:05d}").iterdir())
    documents = sorted(read_documents(pieces), key=lambda one: training_order(one.id, one.origin, task["seed"]))
    held_out = set(json.loads((directory / "held_out.json").read_text(encoding="utf-8")))
    splits = ["validation" if one.module in held_out else "train" for one in documents]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # as `train_tokenizer` set it; the file does not hold it
    tokens = encode_documents(tokenizer, [one.text for one in documents])
    return write_part(directory, task["number"], documents, splits, tokens)


def write_part(
    directory: Path, number: int, documents: Sequence[Document], splits: Sequence[str], tokens: Sequence[np.ndarray]
) -> Counts:
    """Write texts, record and tokens of documents, a part of the training order in this order.

    Returns:
        "<split>/<category>" -> its documents, their tokens, and the tokens of its stream.
    """
    name = f"{number:05d}.parquet"
    write_documents(directory / "texts" / name, documents)
    facts = [
        {column: getattr(one, column, None) for column in FACTS.names} | {"split": split, "num_tokens": len(ids)}
        for one, split, ids in zip(documents, splits, tokens, strict=True)
    ]
    (directory / "facts").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(facts, schema=FACTS), directory / "facts" / name)
    members: dict[tuple[str, str], list[np.ndarray]] = {}
    for one, split, ids in zip(documents, splits, tokens, strict=True):
        members.setdefault((split, one.category), []).append(ids)
    counts: Counts = {}
    for (split, category), group in sorted(members.items()):
        stream = concatenate_documents(group, None if category in TEMPLATED else END_OF_DOCUMENT)
        write_tokens(directory / "tokens" / split / category / name, [stream])
        numbers = {"num_documents": len(group), "num_tokens": sum(map(len, group)), "stream": len(stream)}
        counts[f"{split}/{category}"] = numbers
    return counts


def joined(directory: Path, counts: Sequence[Counts]) -> TokenizedDocuments:
    """All parts of the training order, each with what `write_part` returned for it, as one."""
    documents = TokenizedDocuments(directory, tuple(counts))
    with pq.ParquetWriter(documents.facts_path, FACTS) as writer:
        for number in range(len(counts)):
            writer.write_table(pq.read_table(directory / "facts" / f"{number:05d}.parquet"))
    return documents


def streams_of(documents: TokenizedDocuments, split: str, min_tokens: int) -> dict[str, TokenStream]:
    """Category -> the tokens of its documents in one split, one after the other.

    Raises:
        ValueError: if a category has fewer tokens than `min_tokens`.
    """
    streams = {}
    for category in documents.categories:
        tokens = documents.tokens_of(split, category)
        if len(tokens) < min_tokens:
            raise ValueError(
                f"the corpus is too small: the {split} split of category {category!r} has {len(tokens)} tokens and "
                f"needs {min_tokens}; bring more documents{' or lower --sequence-length' if split == 'train' else ''}"
            )
        streams[category] = TokenStream(tokens)
    return streams


def token_counts(documents: TokenizedDocuments) -> dict[str, dict[str, int]]:
    """ "<split>/<category>" -> the number of its documents and of their tokens."""
    return {
        f"{split}/{category}": {
            name: sum(counts.get(f"{split}/{category}", {}).get(name, 0) for counts in documents.counts)
            for name in ("num_documents", "num_tokens")
        }
        for split in ("train", "validation")
        for category in documents.categories
    }
