"""Curation of generated text: peak memory and megabytes a second of stage 0 and of datatrove.

The text is made of paragraphs of the docstrings and functions of the source of the packages that stage 0 reads. They
are drawn and joined for each document: two documents rarely share much, except for the planted copies. One document of
50 repeats another, and one of 20 differs from another in one word. Both programs read the same .jsonl files on two
processor cores, apply filters of the same kinds, and drop near-duplicates by MinHash with 24-character shingles and 20
bands of 13 hashes. Ours also compares the proposed pairs, decontaminates, and goes on to tokens; the time up to the
documents that are kept, which is what datatrove does, is printed beside the time of the whole step.

Peak memory is that of the process and all of its children together, looked at ten times a second.
datatrove is not a dependency of the project: pip install datatrove -c constraints.txt
Run: python benchmarks/curation.py --megabytes 200
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import tyro

from nemotron.command_line import checked_arguments
from nemotron.recipes.sources.packages import package_documents

FILE_MEGABYTES = 10
PARAGRAPHS = 20  # of a document, at most; the mean text has about 3,000 characters


@dataclass
class Config:
    """Compare our curation with datatrove's."""

    megabytes: tuple[int, ...] = (200,)
    """Sizes of the text; each is one line of the result for each program."""
    directory: Path = Path("outputs/benchmarks/curation")
    """Where text and results go; text that is there is used again, results are removed."""
    peer: bool = True
    """Measure datatrove too."""
    only: Literal["ours", "datatrove"] | None = None
    """Run this in the process itself and measure nothing."""


def paragraphs() -> dict[str, list[str]]:
    """The pieces of each category: paragraphs of prose, and blocks of code."""
    documents, _ = package_documents(20_000)
    pieces: dict[str, list[str]] = {"crawl-high": [], "code": []}
    for document in documents:
        name = "code" if document.category == "code" else "crawl-high"
        between = "\n\n\n" if name == "code" else "\n\n"
        found = document.text.split(between)
        pieces[name] += [
            piece.strip("\n") for piece in found if 80 < len(piece) < 2000 and "license" not in piece.lower()
        ]
    return pieces


def documents_of(megabytes: int) -> Iterator[tuple[str, str, str]]:
    """(id, category, text) of each document, the same for every run; three of four are prose."""
    pieces = paragraphs()
    draw = random.Random(0)
    earlier: dict[str, list[str]] = {name: [] for name in pieces}
    size, number = 0, 0
    while size < megabytes * 1_000_000:
        name = "code" if number % 4 == 3 else "crawl-high"
        kind = draw.random()
        if earlier[name] and kind < 0.07:
            text = earlier[name][int(draw.random() * len(earlier[name]))]
            if kind > 0.02:
                words = text.split(" ")
                words[int(draw.random() * len(words))] = f"changed{number}"
                text = " ".join(words)
        else:
            between = "\n\n\n" if name == "code" else "\n\n"
            text = between.join(draw.choices(pieces[name], k=1 + int(draw.random() * PARAGRAPHS)))
        if len(earlier[name]) < 10_000:
            earlier[name].append(text)
        yield f"{name}/{number:09d}", name, text
        size += len(text.encode())
        number += 1


def write_text(directory: Path, megabytes: int) -> None:
    """Write the documents as <category>/<number>.jsonl of `FILE_MEGABYTES` each, unless they are there."""
    if (directory / "complete").exists():
        return
    shutil.rmtree(directory, ignore_errors=True)
    lines: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    numbers: dict[str, int] = {}

    def write(name: str) -> None:
        path = directory / name / f"{numbers.get(name, 0):05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines.pop(name)), encoding="utf-8", newline="\n")
        numbers[name], sizes[name] = numbers.get(name, 0) + 1, 0

    for id, name, text in documents_of(megabytes):
        lines.setdefault(name, []).append(json.dumps({"id": id, "text": text}) + "\n")
        sizes[name] = sizes.get(name, 0) + len(text)
        if sizes[name] > FILE_MEGABYTES * 1_000_000:
            write(name)
    for name in list(lines):
        write(name)
    (directory / "complete").touch()


def curate_with_ours(text: Path, output: Path, megabytes: int) -> None:
    """The whole step of stage 0, to as many training tokens as the text has."""
    from nemotron.recipes.nano2.stage0_pretrain import data_curation

    data_curation.main(
        data_curation.Config(
            scale="small",
            sources=tuple(f"{name}={text / name}" for name in ("code", "crawl-high")),
            raw_documents="all",
            output_dir=output,
            vocab_size=16_384,
            sequence_length=2048,
            num_sequences=megabytes * 1_000_000 // 4 // 2048,
            long_context_sequences=60,
            long_context_length=8192,
            held_out_share=0.01,
        )
    )


def curate_with_datatrove(text: Path, output: Path) -> None:
    """Filters of the same kinds, then the four steps of datatrove's MinHash deduplication, with two tasks at a time."""

    raise NotImplementedError


def peak_of(command: list[str]) -> tuple[float, float]:
    """Run a command; the seconds that it takes, and the gigabytes of it and its children at their peak."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            used = 0
            with suppress(psutil.Error):
                for one in (process, *process.children(recursive=True)):
                    with suppress(psutil.Error):
                        memory = one.memory_full_info() if hasattr(one, "memory_full_info") else one.memory_info()
                        used += getattr(memory, "pss", memory.rss)
            peak = max(peak, used)
            time.sleep(0.1)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {running.returncode}")
    return time.perf_counter() - start, peak / 1e9


def main(config: Config) -> None:
    """Measure all and print a line for each."""
    for megabytes in config.megabytes:
        text = config.directory / f"text_{megabytes}"
        output = config.directory / f"{config.only}_{megabytes}"
        write_text(text, megabytes)
        if config.only == "ours":
            curate_with_ours(text, output, megabytes)
        elif config.only == "datatrove":
            curate_with_datatrove(text, output)
        else:
            for name in ("ours", "datatrove") if config.peer else ("ours",):
                shutil.rmtree(config.directory / f"{name}_{megabytes}", ignore_errors=True)
                flags = ["--megabytes", str(megabytes), "--directory", str(config.directory), "--only", name]
                seconds, gigabytes = peak_of([sys.executable, __file__, *flags])
                speed = megabytes / seconds
                print(
                    f"{megabytes:>6,} MB  {name:<10} {seconds:8.1f} s {speed:6.2f} MB/s {gigabytes:6.2f} GB", flush=True
                )


if __name__ == "__main__":
    main(tyro.cli(Config, args=checked_arguments()))
