"""Near-duplicates among form letters: seconds and memory of our code and of datasketch, for growing numbers of letters.

The letters have 2,500 characters and differ in one number of five digits, so all of them are one cluster: the worst
case for code that compares all pairs. Each measurement is a separate process. datasketch gets the same number of
hashes and bands, over the same shingles; it does not compare texts, so what its bands propose counts as a duplicate.

datasketch is not a dependency of the project: pip install datasketch -c constraints.txt, or --no-peer.
Run: python benchmarks/near_duplicates.py --letters 200 400 800 15000
"""

import random
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

import psutil
from pydantic import PositiveInt

from nemotron.command_line import check_peer, run_program
from nemotron.recipes.curation.dedup import HASHES_PER_BAND, NUM_BANDS, near_duplicates_rule, shingles
from nemotron.recipes.curation.rules import to_dataframe
from nemotron.recipes.sources import Document


@dataclass
class Config:
    """Compare our search for near-duplicates with datasketch."""

    letters: tuple[PositiveInt, ...] = (200, 400, 800)
    """Numbers of letters; each is one line of the result."""
    characters: PositiveInt = 2500
    """Length of a letter."""
    peer: bool = True
    """Measure datasketch too, which takes minutes for thousands of letters."""
    only: Literal["ours", "datasketch"] | None = None
    """Measure this in the process itself and print seconds, processor seconds, gigabytes and dropped letters."""


def letters(number: int, characters: int) -> list[str]:
    """Letters with a number in their middle; the rest is the same in all."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(characters // 6)]
    text = " ".join(words).ljust(characters, "x")[: characters - 5]
    return [f"{text[: characters // 2]}{index:05d}{text[characters // 2 :]}" for index in range(number)]


def drop_with_ours(texts: list[str]) -> int:
    """How many letters our rule drops."""
    documents = [Document(f"{number:05d}", "letter", "wiki", text, "MIT", "here") for number, text in enumerate(texts)]
    rule = near_duplicates_rule(to_dataframe(documents))
    return sum(rule.fault(document) is not None for document in documents)


def drop_with_datasketch(texts: list[str]) -> int:
    """How many letters share a band with an earlier one."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=NUM_BANDS * HASHES_PER_BAND, params=(NUM_BANDS, HASHES_PER_BAND))
    num_dropped = 0
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=NUM_BANDS * HASHES_PER_BAND)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        if index.query(sketch):
            num_dropped += 1
        else:
            index.insert(str(number), sketch)
    return num_dropped


def peak_gigabytes() -> float:
    """The most memory that this process has used, or that it uses now where the system does not keep the peak."""
    try:
        import resource
    except ImportError:
        return float(psutil.Process().memory_info().rss / 1e9)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main(config: Config) -> None:
    """Measure all and print a line for each."""
    if config.only == "datasketch" or (config.peer and not config.only):
        check_peer("datasketch", "pip install datasketch -c constraints.txt", "--no-peer")
    if config.only:
        (number,) = config.letters
        texts = letters(number, config.characters)
        start, start_cpu = time.perf_counter(), time.process_time()
        num_dropped = {"ours": drop_with_ours, "datasketch": drop_with_datasketch}[config.only](texts)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        memory = peak_gigabytes()
        print(f"{seconds:8.1f} s {cpu:8.1f} processor s {memory:6.2f} GB {num_dropped:>7,} dropped")
        return
    for number in config.letters:
        for name in ("ours", "datasketch") if config.peer else ("ours",):
            flags = ["--letters", str(number), "--characters", str(config.characters), "--only", name]
            done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, encoding="utf-8", check=True)
            print(f"{number:>7,} letters  {name:<10} {done.stdout.rstrip()}", flush=True)


if __name__ == "__main__":
    run_program(Config, main)
