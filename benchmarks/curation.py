"""Curation of generated text: peak memory and megabytes a second of stage 0 and of datatrove.

The text is made of paragraphs of the docstrings and functions of the source of the packages that stage 0 reads. They
are drawn and joined for each document: two documents rarely share much, except for the planted copies. One document of
50 repeats another, and one of 20 differs from another in one word.

    step       the whole step of stage 0, to as many training tokens as the text has
    filters    its part up to the documents that every filter keeps: the rules, exact duplicates, near-duplicates with
               every proposed pair compared, and decontamination
    datatrove  the same rules, called by datatrove, and its four steps of MinHash with shingles of 24 characters and 20
               bands of 13 hashes; it compares no pair, and has two tasks at a time

Memory is that of the process and its children at their peak, with what they share counted once, four times a second.
datatrove is not a dependency of the project: pip install datatrove -c constraints.txt, or --parts step filters.
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
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import PositiveInt

from nemotron.command_line import check_peer, run_program
from nemotron.recipes.curation.decontaminate import decontamination_rule
from nemotron.recipes.curation.dedup import HASHES_PER_BAND, NUM_BANDS, SHINGLE_CHARACTERS
from nemotron.recipes.curation.language import language_rule
from nemotron.recipes.curation.licence import licence_rule
from nemotron.recipes.curation.normalise import normalise_text
from nemotron.recipes.curation.quality import quality_rules
from nemotron.recipes.curation.rules import Rule, first_fault
from nemotron.recipes.nano2.stage0_pretrain import data_curation
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.packages import package_documents
from nemotron.recipes.sources.problems.families import generate_problems

FILE_MEGABYTES = 10
PARAGRAPHS = 20  # of a document, at most; the mean text has about 3,000 characters
TASKS = 8  # of datatrove


Part = Literal["step", "filters", "datatrove"]


@dataclass
class Config:
    """Compare our curation with datatrove's."""

    megabytes: tuple[PositiveInt, ...] = (200,)
    """Sizes of the text."""
    directory: Path = Path("outputs/benchmarks/curation")
    """Where text and results go; text that is there is used again, results are removed."""
    parts: tuple[Part, ...] = ("step", "filters", "datatrove")
    """What to measure."""
    only: Part | None = None
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


def write_corpus(directory: Path, megabytes: int) -> None:
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


def config_of(text: Path, output: Path, megabytes: int) -> data_curation.Config:
    """Stage 0 at the size of the text."""
    return data_curation.Config(
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


def run_filters(config: data_curation.Config) -> int:
    """The number of documents that every filter keeps."""
    problems = generate_problems(config.num_problems, config.seed, "evaluation")
    raw, _ = data_curation.raw_documents(config, config.output_dir / "raw")
    evaluation = data_curation.evaluation_texts(raw, problems)
    return data_curation.curate(raw, evaluation, config.seed, config.output_dir)[0].count_rows()


def is_kept(item: Any) -> bool:
    """The rules of stage 0 that look at a single document, for datatrove."""
    category = Path(item.metadata["file_path"]).parent.name
    document = Document(item.id, item.id, category, normalise_text(item.text), "unknown", "here")
    return first_fault(document, rules()) is None


@cache
def rules() -> list[Rule[Document]]:
    """In the order of stage 0; the last one is decontamination."""
    questions = [problem.question for problem in generate_problems(300, 1234, "evaluation")]
    return [licence_rule(), language_rule(), *quality_rules(), decontamination_rule({"problems": questions})]


class Characters:
    """Every character is a word of datatrove, whose shingles are of words."""

    def word_tokenize(self, text: str) -> list[str]:
        return list(text)


def run_datatrove(text: Path, output: Path) -> int:
    """The number of documents that it keeps."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    minhash.load_word_tokenizer = lambda _: Characters()
    settings = minhash.MinhashConfig(
        n_grams=SHINGLE_CHARACTERS, num_buckets=NUM_BANDS, hashes_per_bucket=HASHES_PER_BAND
    )
    names = ("kept", "signatures", "buckets", "remove", "final")
    kept, signatures, buckets, remove, final = (str(output / name) for name in names)
    pipelines: list[tuple[int, list[Any]]] = [
        (TASKS, [
            JsonlReader(str(text), glob_pattern="**/*.jsonl"), LambdaFilter(is_kept),
            JsonlWriter(kept, compression=None), minhash.MinhashDedupSignature(signatures, settings),
        ]),
        (NUM_BANDS, [minhash.MinhashDedupBuckets(signatures, buckets, config=settings)]),
        (1, [minhash.MinhashDedupCluster(buckets, remove, config=settings)]),
        (TASKS, [
            JsonlReader(kept), minhash.MinhashDedupFilter(remove), JsonlWriter(final, compression=None),
        ]),
    ]  # fmt: skip
    for number, (tasks, pipeline) in enumerate(pipelines):
        logs = str(output / "logs" / str(number))
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=2, logging_dir=logs, start_method="fork").run()
    return sum(len(path.read_bytes().splitlines()) for path in Path(final).glob("*.jsonl"))


def measured(command: list[str]) -> tuple[float, float, float, str]:
    """Run a command: its seconds, processor seconds, gigabytes at the peak, and the last line of its output."""
    start, peak, cpu = time.perf_counter(), 0, 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8") as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            used = 0
            with suppress(psutil.Error):
                for one in (process, *process.children(recursive=True)):
                    with suppress(psutil.Error):
                        memory = one.memory_full_info()
                        used += getattr(memory, "pss", memory.rss)
                cpu = max(cpu, sum(process.cpu_times()[:4]))
            peak = max(peak, used)
            time.sleep(0.25)
        assert running.stdout
        lines = running.stdout.read().splitlines()
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {running.returncode}")
    return time.perf_counter() - start, cpu, peak / 1e9, lines[-1]


def main(config: Config) -> None:
    """Measure all and print a line for each."""
    if "datatrove" in ((config.only,) if config.only else config.parts):
        check_peer("datatrove", "pip install datatrove -c constraints.txt", "--parts step filters")
    for megabytes in config.megabytes:
        text = config.directory / f"text_{megabytes}"
        write_corpus(text, megabytes)
        if config.only:
            output = config.directory / f"{config.only}_{megabytes}"
            shutil.rmtree(output, ignore_errors=True)
            settings = config_of(text, output, megabytes)
            if config.only == "step":
                print(data_curation.main(settings).num_documents)
            else:
                print(run_filters(settings) if config.only == "filters" else run_datatrove(text, output))
            shutil.rmtree(output)
            continue
        for part in config.parts:
            flags = ["--megabytes", str(megabytes), "--directory", str(config.directory), "--only", part]
            seconds, cpu, gigabytes, kept = measured([sys.executable, __file__, *flags])
            print(
                f"{megabytes:>6,} MB  {part:<10} {seconds:8.1f} s {cpu:8.1f} processor s "
                f"{megabytes / seconds:6.2f} MB/s {gigabytes:6.2f} GB {int(kept):>9,} kept",
                flush=True,
            )


if __name__ == "__main__":
    run_program(Config, main)
