"""Curation as a whole: its result must not depend on the process that it runs in."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, random
from nemotron.recipes.sources.dataframes import daft
from nemotron.recipes.curation import dedup, rules, scorers, split, tokenizer
words = "alpha beta gamma delta epsilon zeta eta theta".split()
def text_of(number):
    draw = random.Random(number)
    return " ".join(words[int(draw.random() * 8)] for _ in range(60))
texts = [text_of(n // 2) for n in range(120)]
texts += [text + " and so on" for text in texts[:20]]
frame = daft.from_pydict({
    "id": [f"{n:03d}" for n in range(len(texts))], "text": texts, "module": [f"m{n % 30}" for n in range(len(texts))],
    "category": ["academic"] * len(texts),
    "licence": ["MIT"] * len(texts), "origin": ["here"] * len(texts),
    "has_example": [n % 3 == 0 for n in range(len(texts))],
    "exported": [n // 2 % 2 == 0 if n % 5 else None for n in range(len(texts))],
})
reports = {}
frame = rules.apply_to_dataframe(frame, [dedup.exact_duplicates_rule(frame)], reports)
frame = rules.apply_to_dataframe(frame, [dedup.near_duplicates_rule(frame)], reports)
frame, fitted = scorers.add_buckets(frame, 0)
rows = frame.sort("id").to_pylist()
held_out = split.held_out_modules([(row["module"], row["category"]) for row in rows], 0.1, 0)
trained = tokenizer.train_tokenizer([row["text"] for row in rows], 350)
tokens = [tokens.tolist() for tokens in tokenizer.encode_documents(trained, [row["text"] for row in rows])]
print(json.dumps([
    [(row["id"], row["bucket"]) for row in rows], {k: v.model_dump() for k, v in reports.items()},
    [report.model_dump() for report in fitted], sorted(held_out), tokens,
    scorers.hashed_features(texts[:9]).columns.tolist(),
]))
"""


def test_hash_seed_thread_count_and_locale_do_not_change_ids_buckets_or_tokens(tmp_path):
    environments = [
        {"PYTHONHASHSEED": "0", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "4321", "RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "LC_ALL": "C.UTF-8"},
    ]
    command = [sys.executable, "-c", PROGRAM]
    outputs = [
        subprocess.run(command, env=os.environ | environment, cwd=directory, capture_output=True, check=True).stdout
        for environment, directory in zip(environments, (tmp_path, "/"), strict=True)
    ]
    assert outputs[0] == outputs[1]
    kept, reports, fitted, *_ = json.loads(outputs[0])
    assert 0 < len(kept) < 140
    assert all(report["num_dropped"] > 0 for report in reports.values())
    assert len(fitted) == 2
