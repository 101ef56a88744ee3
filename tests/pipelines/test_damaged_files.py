"""Files from strangers and from broken disks: they load unchanged, or one sentence names them.

A seeded generator damages small real files: it flips bits, cuts, swaps and removes files, replaces them by links and
pipes, and puts values of every type into every place of the JSON. What is covered by a digest must load with exactly
the undamaged value or be refused. What is not (a Hugging Face directory, or files whose digest was computed again) may
load with another value, but must never end in a traceback, hang or need much memory.

    DAMAGED_FILES=2500 pytest tests/pipelines/test_damaged_files.py     # examples of each kind; 15 by default

An example is named by its kind and number, so that one can be repeated alone: see `ONE_EXAMPLE`.
"""

import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nemotron import Artifact
from nemotron.directory import METADATA, Metadata, file_record
from nemotron.lineage.__main__ import read_tree, tree_lines
from nemotron.recipes.chat.program import Config, load_chat
from nemotron.recipes.chat.tokenizer import save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config, save_checkpoint, save_tensors
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.memory import Pass, check_fits
from nemotron.recipes.training.run import Checkpoint, training_ladder
from nemotron.recipes.training.state import (
    CHECKSUMS,
    STATE_FILES,
    Identity,
    Record,
    is_finished,
    read_training_state,
    write_training_state,
)
from nemotron.strict import MAX_SENTENCE_CHARACTERS, one_sentence
from nemotron.testing.compare import GoldenError, Policy, compare, encode_golden, read_ladder, run_document

EXAMPLES = int(os.environ.get("DAMAGED_FILES", "15"))
ONE_EXAMPLE = os.environ.get("DAMAGED_FILE")  # "config/17": this example alone
MAX_SECONDS = 20  # a hang; a refusal takes milliseconds
MAX_EXTRA_BYTES = 600 << 20  # torch's own caches are a part of this

TRAINED: Identity = {"dataset": "d" * 64, "config": {"scale": "tiny", "learning_rate": 1e-3, "seed": 7}}


# --- damage ---


Damage = Callable[[random.Random, Path], str]

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.5, 1e-320, 1e308),
    *("", "x", "5", "\0", "\ud800", "\x1b]0;X\x07", "x" * 10_000, "..", "/", "/dev/zero", "a/" * 3000, "mamba"),
    "M" * 100_000,
    *([], {}, [[]], [None], [5], ["x"], {"a": 1}, {"": None}, [0] * 100_000, {"type": "x"}),
]  # fmt: skip
RAW_VALUES = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "01", "0x1", "nul", "'x'"),
    *("[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900, "[" * 150 + "]" * 150, '{"a":' * 300 + "1" + "}" * 300),
    '{"a": 1, "a": 2}',
]
MARK = "\u2603 raw value"


def places_of(value: Any, place: tuple = ()) -> list[tuple]:
    """Every place in a JSON value but the top, as keys and indices; of a long list only the first few elements."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    return [deeper for key, inner in items for deeper in ((*place, key), *places_of(inner, (*place, key)))]


def inside(value: Any, place: tuple) -> Any:
    for key in place:
        value = value[key]
    return value


def damage_json(random: random.Random, text: str) -> tuple[str, str]:
    """JSON text with one or two values replaced, removed, renamed, repeated or swapped, and what was done."""
    value, done, raw = json.loads(text), [], None
    for _ in range(random.choice((1, 1, 1, 2))):
        # Every level is equally likely: most places of a tokenizer are in its vocabulary.
        places = places_of(value)
        depth = random.choice(sorted({len(place) for place in places}))
        place = random.choice([place for place in places if len(place) == depth])
        holder, key = inside(value, place[:-1]), place[-1]
        how = random.choice(("value", "value", "value", "raw", "remove", "rename", "add", "swap", "wrap", "text"))
        done.append(f"{how} at {'/'.join(map(str, place))}")
        if how == "value":
            holder[key] = copy.deepcopy(random.choice(VALUES))
            done[-1] += f": {str(holder[key])[:40]!r}"
        elif how == "raw":
            holder[key], raw = MARK, random.choice(RAW_VALUES)
            done[-1] += f": {raw[:40]!r}"
        elif how == "remove":
            del holder[key]
        elif how == "rename" and isinstance(holder, dict):
            holder[random.choice(("x", "", "path", key.upper()))] = holder.pop(key)
        elif how == "add" and isinstance(holder, dict):
            holder[random.choice(("x", "path", "metrics", f"{key}_", "__class__"))] = random.choice(VALUES)
        elif how == "swap":
            other = random.choice(places)
            if other[: len(place)] != place and place[: len(other)] != other:
                elsewhere = inside(value, other[:-1])
                holder[key], elsewhere[other[-1]] = elsewhere[other[-1]], holder[key]
        elif how == "wrap":
            holder[key] = [holder[key]]
        else:
            holder[key] = str(holder[key])
        if not places_of(value):
            break
    text = json.dumps(value)
    return text if raw is None else text.replace(json.dumps(MARK), raw), "; ".join(done)


def damage_bytes(random: random.Random, file: Path, others: list[Path]) -> str:
    """Damage a file as a disk, an interrupted copy or a joker does; return what was done."""
    content = bytearray(file.read_bytes())
    how = random.choice(("flip", "flip", "flip", "cut", "zero", "append", "empty", "swap", "remove", "directory",
                         "device", "pipe", "nowhere", "noise", "utf-16", "bom", "permission"))  # fmt: skip
    if how == "flip":
        for _ in range(random.choice((1, 1, 3, 50))):
            position = random.randrange(min(len(content), random.choice((64, 4096, 1 << 30))))
            content[position] ^= 1 << random.randrange(8)
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(content[: random.randrange(len(content))])
    elif how == "zero":
        start = random.randrange(len(content))
        file.write_bytes(content[:start] + bytes(len(content) - start))
    elif how == "append":
        file.write_bytes(content + random.choice((b"\0", b"{}", b"\n", content)))
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "swap":
        other = random.choice(others)
        theirs = other.read_bytes()
        other.write_bytes(content)
        file.write_bytes(theirs)
        how = f"swap with {other.name}"
    elif how == "noise":
        file.write_bytes(random.randbytes(random.choice((7, 64, 5000))))
    elif how == "utf-16":
        file.write_bytes(content.decode("latin-1").encode("utf-16"))
    elif how == "bom":
        file.write_bytes(b"\xef\xbb\xbf" + content)
    elif how == "permission":
        file.chmod(0)
    else:
        file.unlink()
        if how == "directory":
            file.mkdir()
        elif how == "device":
            file.symlink_to("/dev/zero")
        elif how == "pipe":
            os.mkfifo(file)
        elif how == "nowhere":
            file.symlink_to("/nowhere/at/all")
    return f"{how} {file.name}"


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def damage_any_file(random: random.Random, directory: Path) -> str:
    files = files_below(directory)
    return damage_bytes(random, random.choice(files), files)


def damaging_json(*names: str) -> Damage:
    """Damage the JSON of one of these files."""

    def damage(random: random.Random, directory: Path) -> str:
        name = random.choice(names)
        text, done = damage_json(random, (directory / name).read_text("utf-8"))
        (directory / name).write_text(text, "utf-8", errors="surrogatepass")
        return f"{name}: {done}"

    return damage


def damaging_bytes(*names: str) -> Damage:
    return lambda random, directory: damage_bytes(
        random, directory / random.choice(names), [directory / name for name in names]
    )


def read_safetensors(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def damaging_header(*names: str) -> Damage:
    """Damage the JSON header of a safetensors file, or the length that it claims."""

    def damage(random: random.Random, directory: Path) -> str:
        file = directory / random.choice(names)
        header, data = read_safetensors(file)
        how = random.choice(("json", "json", "length", "dtype"))
        length = None
        if how == "dtype":
            name = random.choice(sorted(header))
            header[name] = {**header[name], "dtype": random.choice(DTYPES)} if name != "__metadata__" else {}
            text = json.dumps(header)
        elif how == "json":
            text, done = damage_json(random, json.dumps(header))
            how = done
        else:
            text = json.dumps(header)
            length = random.choice((0, 1, 7, 2**31, 2**62, 2**64 - 1, len(text) - 1, len(text) + 1))
        raw = text.encode("utf-8", errors="surrogatepass")
        file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
        return f"header of {file.name}: {how}"

    return damage


DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3",
          "U16", "U32", "U64", "I8", "C64", "X")  # fmt: skip
TORCH_DTYPES = (torch.int64, torch.int8, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float64,
                torch.complex64, torch.float8_e4m3fn, torch.uint16)  # fmt: skip


def damage_tensors(random: random.Random, tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> str:
    """Change, drop, add or exchange tensors of a file."""
    name = random.choice(sorted(tensors))
    how = random.choice(("dtype", "shape", "drop", "add", "rename", "exchange", "value", "other", "empty", "all"))
    if how == "dtype":
        tensors[name] = tensors[name].to(random.choice(TORCH_DTYPES))
    elif how == "shape":
        shape = random.choice(
            ((), (0,), (1,), (3, 3), (*tensors[name].shape, 1), (0, 1 << 40), tensors[name].shape[::-1])
        )
        tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    elif how == "drop":
        del tensors[name]
    elif how == "add":
        tensors[random.choice(("x", "", "lm_head.bias", f"{name}.x", "99999999999999999999.step", "1.x"))] = (
            torch.zeros(2)
        )
    elif how == "rename":
        tensors[name.upper() + "x"] = tensors.pop(name)
    elif how == "exchange":
        other = random.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif how == "value":
        value = random.choice((float("nan"), float("inf"), -3e38, 1e30))
        tensors[name] = torch.full_like(tensors[name], value)
    elif how == "all":
        dtype = random.choice(TORCH_DTYPES)
        tensors.update({each: tensor.to(dtype) for each, tensor in tensors.items()})
    elif how == "other" and name in others:
        tensors[name] = others[name]
    elif how == "empty":
        tensors.clear()
    return f"{how} of {name}"


def damaging_tensors(*names: str) -> Damage:
    def damage(random: random.Random, directory: Path) -> str:
        from safetensors.torch import load_file

        file = directory / random.choice(names)
        tensors = load_file(file)
        done = damage_tensors(random, tensors, load_file(directory / random.choice(names)))
        save_tensors(tensors, file)
        return f"{file.name}: {done}"

    return damage


# --- what is damaged, and how it is read ---


SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=8,
    hybrid_override_pattern="M-*",
    intermediate_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    mamba_num_heads=2,
    mamba_head_dim=4,
    n_groups=1,
    ssm_state_size=4,
    chunk_size=8,
    max_position_embeddings=256,
)


class Dataset(Artifact):
    """What the checkpoint was trained on."""


def small_model(seed: int) -> NemotronH:
    model = NemotronH(SHAPE)
    initialize(model, seed)
    return model


def trained_steps(work: Path, seed: int, steps: int) -> Record:
    """Train nothing much for some steps; the last states stay in `work`."""
    model = small_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    record = Record(weights={"initial": weight_fingerprint(model)})
    for step in range(steps):
        loss = sum(parameter.square().sum() for parameter in model.parameters())
        loss.backward()
        optimizer.step()
        record.curve.append(
            {"step": step, "phase": "one", "batch": "b" * 64, "tokens": 9, "loss": 0.5 + seed + step, "grad_norm": 1.0}
        )
        record.weights.setdefault("after step 1", weight_fingerprint(model))
        record.validation.append({"step": step + 1, "category": "code", "loss": 0.5})
        record.weights["final"] = weight_fingerprint(model)
        write_training_state(work, TRAINED, model, optimizer, record)
    return record


def save_model(directory: Path) -> None:
    """A chat model in the Hugging Face layout."""
    tokenizer = train_tokenizer(["user assistant /think the answer is <think> 12\n"], 300)
    save_tokenizer(tokenizer, directory / "tokenizer")
    save_chat_tokenizer(CHAT, directory / "tokenizer", directory / "tokenizer")
    model = NemotronH(replace(SHAPE, vocab_size=max(300, tokenizer.get_vocab_size())))
    initialize(model, 1)
    save_checkpoint(model, directory / "tokenizer", directory, CHAT.stop_ids)
    shutil.rmtree(directory / "tokenizer")
    (directory / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undamaged directory of each kind; examples damage a copy."""
    root = tmp_path_factory.mktemp("originals")
    save_model(root / "model")

    shutil.copytree(root / "model", root / "shards")
    from safetensors.torch import load_file

    tensors = load_file(root / "model" / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_tensors({name: tensors[name] for name in part}, root / "shards" / file)
        weight_map |= dict.fromkeys(part, file)
    (root / "shards" / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (root / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))

    trained_steps(root / "states" / "run.incomplete", 1, 2)
    trained_steps(root / "states" / "other", 2, 2)

    dataset = root / "artifact" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "rows.txt").write_text("1 2 3\n")
    Dataset(path=dataset).save()
    work = root / "artifact" / "training"
    record = trained_steps(work, 1, 1)
    shutil.copytree(root / "model", work / "model")
    pq.write_table(pa.Table.from_pylist(record.curve), work / "curve.parquet")
    (work / "loss.svg").write_text("<svg/>")
    config = {"scale": "tiny", "seed": 7}
    Checkpoint(
        path=work,
        num_steps=1,
        num_parameters=5,
        training_loss=0.5,
        checkpoint_path=work / "model",
        training_state_path=work / "training_state",
        curve_path=work / "curve.parquet",
        validation_curve_path=work / "curve.parquet",
        plot_path=work / "loss.svg",
        dataset_path=dataset,
        metrics={"validation_loss/code": 0.5},
    ).save(config)

    ladder = root / "ladder"
    ladder.mkdir()
    entries = [
        {"rung": "config", "name": "seed", "step": 0, "value": 7},
        {"rung": "loss", "name": "loss", "step": 0, "value": 0.5},
        {"rung": "predictions", "name": "ids", "step": 3, "value": {"a": [1, "x", None, True]}},
    ]
    (ladder / "ladder.json").write_text(json.dumps(entries))
    return root


def fingerprint(model: NemotronH) -> dict[str, Any]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.to(torch.float64).state_dict().items()}


def read_model(directory: Path) -> Any:
    """Everything that reads a Hugging Face directory, up to a reply."""
    shape = load_config(directory)
    config = SimpleNamespace(dtype="float32", device="cpu", activation_checkpointing=False)
    check_fits(shape, config, [Pass(1, 1, 1)])
    chat = load_chat(CHAT, Config(directory, max_new_tokens=2, temperature=0.0, budget=2, grace_tokens=0))
    try:
        list(chat.reply("What is 12? /think"))
        list(chat.reply("And é? /no_think"))
    except ValueError as error:  # about the message, for example in a context of 1 token
        raise ValueError(f"{directory}: {error}") from error
    save_chat_tokenizer(CHAT, directory, directory / "copy")
    return fingerprint(load_checkpoint(directory)), shape, chat.tokenizer.to_str(), str(chat.messages)


def read_artifact(directory: Path) -> Any:
    """Everything that reads a Checkpoint; the origin of an artifact is not covered by its digest."""
    place = directory / "training"
    checkpoint = Checkpoint.load(place)
    checkpoint.check_scale("tiny")
    assert list(tree_lines(read_tree(place)))
    chat = load_chat(CHAT, Config(place, max_new_tokens=1))
    fields = checkpoint.model_dump(exclude={"path", "dataset_path"})
    relative = {name: str(value).removeprefix(str(place)) for name, value in fields.items()}
    return checkpoint.digest, relative, checkpoint.files, fingerprint(chat.model), chat.tokenizer.to_str()


def resume(directory: Path) -> Any:
    model = small_model(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    record = read_training_state(directory / "run.incomplete", TRAINED, model, optimizer)
    value = len(record.curve), str(record), fingerprint(copy.deepcopy(model)), str(optimizer.state_dict())
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    if record.curve:
        record.weights["final"] = weight_fingerprint(model)
        training_ladder(NumbersOnly(), model.config, {}, 5, record)
    return value


@dataclass
class NumbersOnly:
    seed: int = 7


def read_states(directory: Path) -> Any:
    """See whether the run would be recognized as finished, and resume it."""
    work, run = directory / "run.incomplete", directory / "run"
    work.rename(run)
    with suppress(ValueError, OSError):
        is_finished(run, TRAINED, "--resume")
    run.rename(work)
    return resume(directory)


def read_ladder_of(directory: Path) -> Any:
    document = run_document("letters/stage0_bigram", {"training": read_ladder(directory)})
    golden = encode_golden(document, Policy())
    return golden, str(compare(golden, document))


def damage_metadata_and_reseal(random: random.Random, directory: Path) -> str:
    """As a stranger: damaged metadata or files, with hashes that match."""
    place = directory / "training"
    if random.random() < 0.5:
        done = random.choice((
            damaging_json("model/config.json", "model/tokenizer.json", "model/tokenizer_config.json"),
            damaging_header("model/model.safetensors"),
            damaging_tensors("model/model.safetensors"),
        ))(random, place)  # fmt: skip
        text = (place / METADATA).read_text()
        values = json.loads(text)
        values["files"] = {name: file_record(place / name).model_dump() for name in values["files"]}
        text = json.dumps(values)
    else:
        text, done = damage_json(random, (place / METADATA).read_text())
    try:
        metadata = Metadata.model_validate_json(text)
        metadata.digest = metadata.compute_digest()
        text = metadata.model_dump_json()
    except (ValueError, RecursionError):
        done += " (not resealed)"
    (place / METADATA).write_text(text, "utf-8", errors="surrogatepass")
    return f"resealed {done}"


def damage_metadata(random: random.Random, directory: Path) -> str:
    return damaging_json(f"training/{METADATA}")(random, directory)


def damage_state(random: random.Random, directory: Path) -> str:
    """Damage or mix the states of two runs."""
    run = directory / "run.incomplete" / "training_state"
    ours = [run / "step-00000001", run / "step-00000002"]
    theirs = [directory / "other" / "training_state" / state.name for state in ours]
    how = random.choice(("bytes", "bytes", "json", "mix", "mix", "exchange", "rename", "drop"))
    target = random.choice((ours[1], ours[1], ours[0]))
    if how == "bytes":
        return damage_bytes(random, random.choice(files_below(target)), files_below(run))
    if how == "json":
        return damaging_json("state.json", CHECKSUMS)(random, target)
    names = random.sample((*STATE_FILES, CHECKSUMS), random.choice((1, 2, 3)))
    if how == "mix":
        source = random.choice([state for state in (*ours, *theirs) if state != target])
        for name in names:
            shutil.copyfile(source / name, target / name)
        return f"mix {names} of {source.parent.parent.name}/{source.name} into {target.name}"
    if how == "exchange":
        for name in names:
            first, second = (state / name for state in ours)
            content = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(content)
        return f"exchange {names}"
    if how == "rename":
        target.rename(
            run / random.choice(("step-7", "step-x", "step-", "step-00000003", "step-0000000000001", "step-²"))
        )
        return f"rename {target.name}"
    for name in names:
        (target / name).unlink()
    return f"drop {names}"


def damage_state_and_reseal(random: random.Random, directory: Path) -> str:
    """As a stranger: a state that makes no sense, with checksums that match."""
    target = directory / "run.incomplete" / "training_state" / "step-00000002"
    damage = random.choice((
        damaging_json("state.json"),
        damaging_header("model.safetensors", "optimizer.safetensors"),
        damaging_tensors("model.safetensors", "optimizer.safetensors"),
    ))  # fmt: skip
    done = damage(random, target)
    records = {name: file_record(target / name).model_dump() for name in STATE_FILES}
    (target / CHECKSUMS).write_text(json.dumps(records))
    return f"resealed {done}"


@dataclass(frozen=True)
class Kind:
    """A kind of damage: what it is done to, how that is read, and whether a digest covers it."""

    original: str
    damage: Damage
    read: Callable[[Path], Any]
    is_covered: bool = False
    """Whether the value read must be the undamaged one."""
    is_named: bool = True
    """Whether the sentence must have the path; that about a ladder names its step and entry."""


WEIGHTS, SHARDS = ("model.safetensors",), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
KINDS = {
    "config": Kind("model", damaging_json("config.json"), read_model),
    "config bytes": Kind("model", damaging_bytes("config.json"), read_model),
    "tokenizer": Kind("model", damaging_json("tokenizer.json"), read_model),
    "tokenizer config": Kind(
        "model", damaging_json("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"), read_model
    ),
    "tokenizer bytes": Kind("model", damaging_bytes("tokenizer.json", "tokenizer_config.json"), read_model),
    "weights": Kind("model", damaging_tensors(*WEIGHTS), read_model),
    "weights header": Kind("model", damaging_header(*WEIGHTS), read_model),
    "weights bytes": Kind("model", damaging_bytes(*WEIGHTS), read_model),
    "index": Kind("shards", damaging_json(INDEX), read_model),
    "shards": Kind("shards", damaging_tensors(*SHARDS), read_model),
    "shards bytes": Kind("shards", damaging_bytes(*SHARDS, INDEX), read_model),
    "metadata": Kind("artifact", damage_metadata, read_artifact, is_covered=True),
    "artifact": Kind("artifact", damage_any_file, read_artifact, is_covered=True),
    "artifact of a stranger": Kind("artifact", damage_metadata_and_reseal, read_artifact),
    "states": Kind("states", damage_state, read_states, is_covered=True),
    "states of a stranger": Kind("states", damage_state_and_reseal, read_states),
    "ladder": Kind("ladder", damaging_json("ladder.json"), read_ladder_of, is_named=False),
    "ladder bytes": Kind("ladder", damaging_bytes("ladder.json"), read_ladder_of, is_named=False),
}


# --- the tests ---


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"still busy after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault_of(kind: Kind, seed: str, originals: Path, place: Path, allowed: list[Any]) -> tuple[str, str]:
    """Damage a copy and read it; return what was done, and what is wrong with the outcome: "" if nothing is."""
    shutil.copytree(originals / kind.original, place, symlinks=True)
    done = kind.damage(random.Random(seed), place)
    try:
        with time_limit(MAX_SECONDS):
            value = kind.read(place)
    except (ValueError, OSError) as error:
        said = one_sentence(error)
        if type(error) not in (ValueError, GoldenError) and not isinstance(error, OSError):
            return done, f"raises {type(error).__name__}: {said[:300]}"
        if len(str(error)) > MAX_SENTENCE_CHARACTERS:  # the advice at the end would be cut off
            return done, f"says more than a sentence: {said[:300]!r}"
        if kind.is_named and str(place) not in said:
            return done, f"does not name the file: {said[:300]}"
        return done, ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return done, f"raises {type(error).__name__}: {str(error)[:300]}"
    if kind.is_covered and value not in allowed:
        return done, "loads with another value"
    return done, ""


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_load_unchanged_or_are_named_in_one_sentence(
    name: str, originals: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    kind = KINDS[name]
    chosen = range(EXAMPLES)
    if ONE_EXAMPLE:
        if ONE_EXAMPLE.rpartition("/")[0] != name:
            return
        chosen = range(int(ONE_EXAMPLE.rpartition("/")[2]), int(ONE_EXAMPLE.rpartition("/")[2]) + 1)
    allowed = []
    if kind.is_covered:
        shutil.copytree(originals / kind.original, tmp_path / "undamaged")
        allowed.append(kind.read(tmp_path / "undamaged"))
        if kind.original == "states":  # or the state before the last
            shutil.copytree(originals / kind.original, tmp_path / "before")
            shutil.rmtree(tmp_path / "before" / "run.incomplete" / "training_state" / "step-00000002")
            allowed.append(kind.read(tmp_path / "before"))
            # or none, if neither has the name of a state
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    faults = {}
    for number in chosen:
        place = tmp_path / "damaged"
        done, fault = fault_of(kind, f"{name}/{number}", originals, place, allowed)
        if fault:
            faults[f"{name}/{number}: {done}"] = fault
        shutil.rmtree(place)
        capfd.readouterr()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    listed = "\n".join(f"{example} -> {fault}" for example, fault in faults.items())
    assert not faults, f"{len(faults)} of {len(chosen)} examples:\n{listed}"
    assert after - before < MAX_EXTRA_BYTES
