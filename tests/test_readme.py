"""The commands of README.md are run as they are printed; the flags and links of every README exist."""

import dataclasses
import importlib
import json
import os
import pty
import random
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import tyro
from torch.distributed.run import get_args_parser

from nemotron import set_lineage_tracker, strict
from nemotron.config import parse_command_line
from nemotron.lineage.__main__ import Config as LineageConfig
from nemotron.recipes.chat import template, template_process
from nemotron.recipes.chat.program import Config as ChatConfig
from nemotron.recipes.nano2 import __main__ as nano2
from nemotron.recipes.nano2 import rollout_plan
from nemotron.recipes.nano2.stage0_pretrain import data_curation, plan
from nemotron.recipes.nano2.stage0_pretrain.__main__ import Config as Stage0Config
from nemotron.recipes.nano2.stage1_sft import data_curation as fine_tuning_data
from nemotron.recipes.nano2.stage1_sft import plan as fine_tuning_plan
from nemotron.recipes.nano2.stage1_sft import training as fine_tuning
from nemotron.recipes.nano2.stage2_rlvr import data_curation as rlvr_data
from nemotron.recipes.nano2.stage2_rlvr import training as rlvr
from nemotron.recipes.nano2.stage5_compress import plan as compression_plan
from nemotron.recipes.nemotron_h.checkpoint import MAX_TOKENIZER_BYTES
from nemotron.recipes.nemotron_h.model import MAX_LAYERS, MAX_SIZE, OTHER_LIMITS, PUBLISHED_9B
from nemotron.recipes.sources import listing, reading
from nemotron.recipes.training.memory import Pass, memory_of_use

ROOT = Path(__file__).parents[1]
READMES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part in ("outputs", "build") or part.startswith(".") for part in path.relative_to(ROOT).parts)
)

WHOLE = "python -m nemotron.recipes.nano2 --scale tiny"
STAGE = "stage=nemotron.recipes.nano2.stage0_pretrain"
EVALUATION = "python -m $stage.evaluation --checkpoint-path outputs/nano2/tiny/stage0_pretrain/training"
CHAT = "python -m nemotron.recipes.nano2.chat_cli outputs/nano2/tiny/stage1_sft/training"
PIPED_CHAT = f'echo "What is 3 + 4? /no_think" | {CHAT}'
PLAN = "python -m nemotron.recipes.nano2.stage0_pretrain --scale full --plan"
DEVICES_PLAN = "python -m nemotron.recipes.nano2.stage0_pretrain --scale medium --plan --devices 8"
OWN_TEXT = (
    "python -m nemotron.recipes.nano2.stage0_pretrain --scale tiny "
    '--data.sources "code=src/**/*.txt" "crawl-high=notes/*.jsonl"'
)
RUN_HERE = {WHOLE, STAGE, EVALUATION, CHAT, PIPED_CHAT, PLAN, OWN_TEXT}

STAGE_COMMAND = "python -m nemotron.recipes.nano2.{stage} --scale tiny"
CHECKPOINTS = {
    "stage2_rlvr": "training",
    "stage3_dpo": "training",
    "stage4_rlhf": "merging",
    "stage5_compress": "training",
}
"""Stage -> the step whose Checkpoint its README talks to; that of stage 1 is in README.md."""
CHATS = {
    f"python -m nemotron.recipes.nano2.chat_cli outputs/nano2/tiny/{stage}/{step}"
    for stage, step in CHECKPOINTS.items()
}
COMPRESSION_PLAN = "python -m nemotron.recipes.nano2.stage5_compress --scale full --plan"
ON_OUTPUTS = {
    *(STAGE_COMMAND.format(stage=path.name) for path in (ROOT / "recipes" / "nano2").glob("stage*")),
    "python -m nemotron.report outputs/nano2/tiny",
    "python -m nemotron.lineage outputs/nano2/tiny/stage4_rlhf/evaluation",
    "python -m nemotron.recipes.nano2.numbers",
    "python -m nemotron.recipes.nano2.stage0_pretrain --scale full --help",
    COMPRESSION_PLAN,
}
"""Commands that finish in a second on the outputs of the first one."""
FOLLOWED = {
    "docs/add-recipe.md": ("tests/test_add_recipe.py", '"docs" / "add-recipe.md"'),
    "examples/letters/README.md": ("tests/test_examples.py", '-m", "pytest'),
    "CONTRIBUTING.md": (
        "tests/nemotron/testing/test_bless.py",
        "def test_small_change_fails_with_its_cause_and_passes_",
    ),
    "docs/run-for-real.md": (
        "tests/test_readme.py",
        "def test_a_command_of_run_for_real_is_run_here_or_says_what_it_needs(",
    ),
}
"""Document -> the test that does what it says, from its first command to its last."""

PIPES = "tests/pipelines/test_pipes.py"
TRACKED = (
    "python -m nemotron.recipes.nano2.stage0_pretrain.training --tracker mlflow "
    "--dataset-path outputs/nano2/tiny/stage0_pretrain/data_curation"
)
HARNESS = (
    "python -m nemotron.recipes.nano2.stage1_sft.evaluation --harness lm-eval --tasks nemotron_problems "
    "nemotron_replies --checkpoint-path outputs/nano2/tiny/stage1_sft/training"
)
PUBLISHED = "tests/pipelines/test_published_runs.py"
RUN_ELSEWHERE = {
    "python -m nemotron.recipes.nano2.stage1_sft --scale tiny --base-checkpoint-path models/nano": (
        PUBLISHED,
        "def test_fine_tuning_starts_from_a_published_model(",
    ),
    "python -m nemotron.recipes.nano2.stage2_rlvr --scale tiny --base-checkpoint-path models/nano": (
        PUBLISHED,
        "def test_a_later_stage_starts_from_a_published_model(",
    ),
    'pip install "nemotron-recipes[mlflow]"': ("pyproject.toml", '"nemotron-recipes[lm-eval,mlflow,ray,wandb]"'),
    'pip install "nemotron-recipes[lm-eval]"': ("pyproject.toml", '"nemotron-recipes[lm-eval,mlflow,ray,wandb]"'),
    TRACKED: (
        "tests/nemotron/test_trackers.py",
        "def test_a_tracked_training_has_the_same_numbers_and_its_curve_is_in_both_trackers(",
    ),
    HARNESS: (
        "tests/recipes/nano2/harness/test_init.py",
        "def test_the_flags_of_an_evaluation_step_add_the_metrics_of_lm_eval(",
    ),
    "python -m nemotron.recipes.nano2.stage0_pretrain.training --dataset-path "
    "outputs/nano2/tiny/stage0_pretrain/data_curation --resume": (
        "tests/pipelines/test_resume.py",
        "--resume",
    ),
    "python -m nemotron.recipes.nano2.stage5_compress.final --scale tiny --checkpoint-path "
    "outputs/nano2/tiny/stage5_compress/training": (
        "tests/recipes/nano2/stage5_compress/test_final.py",
        "def test_every_link_reads_what_the_one_before_wrote(",
    ),
    "pip install -e . -c constraints.txt": (".github/workflows/ci.yml", "pip install -e . -c constraints.txt"),
    "pip install nox": (".github/workflows/ci.yml", "pip install nox"),
    "nox": (".github/workflows/ci.yml", "nox -s tests"),
    "set -o pipefail": ("tests/pipelines/conftest.py", "set -o pipefail"),
    "python -m $stage.data_curation | python -m $stage.training | python -m $stage.evaluation": (
        PIPES,
        "def test_three_steps_in_a_pipe_give_the_numbers_of_plain_calls(",
    ),
    "python -m $stage.data_curation --scale tiny > outputs/dataset.json": (
        "tests/test_packaging.py",
        "def test_an_installed_step_runs_in_an_empty_directory(",
    ),
    "python -m $stage.training --scale tiny < outputs/dataset.json > outputs/checkpoint.json": (
        PIPES,
        "def test_step_reads_from_a_file_and_writes_to_one(",
    ),
}
"""Command -> file that runs it, or the same with fewer steps, and the text to find there."""


def bash_commands(text):
    """The commands in the bash blocks of a Markdown text, without comments; `&&` separates two."""
    return [command for command, _ in commented_commands(text)]


def commented_commands(text):
    """The same, each with the comment at the end of its line."""
    lines = [line for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    for line in lines:
        commands, _, comment = re.sub(r"(?:^|\s)#", "\0", line, count=1).partition("\0")
        yield from ((command.strip(), comment.strip()) for command in commands.split("&&") if command.strip())


def inline_commands(text):
    """The commands between backticks in running text."""
    return re.findall(r"(?<!`)`((?:python|nox|pytest) [^`<]*|nox)`(?!`)", text)


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_a_block_is_run_by_a_test_or_says_what_it_needs(path):
    text = path.read_text(encoding="utf-8")
    if (name := path.relative_to(ROOT).as_posix()) in FOLLOWED:
        test, place = FOLLOWED[name]
        assert place in (ROOT / test).read_text(encoding="utf-8")
        return
    run = RUN_HERE | RUN_ELSEWHERE.keys() | ON_OUTPUTS | CHATS
    assert [
        command for command, comment in commented_commands(text) if command not in run and "needs" not in comment
    ] == []


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_a_text_names_what_exists(path):
    """Sessions of nox, tests and benchmarks; modules and their flags have the test below."""
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE))
    for command in inline_commands(path.read_text(encoding="utf-8")):
        words = shlex.split(command.replace("...", ""))
        if words[:2] == ["nox", "-s"]:
            named = words[2 : words.index("--") if "--" in words else None]
            assert {word for word in named if not word.startswith("-")} <= sessions, command
        for word in words[1:]:
            if word.endswith(".py"):
                assert (ROOT / word).is_file() or list((ROOT / "recipes").rglob(word)), command


def test_every_command_of_the_readme_is_run_by_a_test():
    commands = set(bash_commands((ROOT / "README.md").read_text(encoding="utf-8")))
    assert commands <= RUN_HERE | RUN_ELSEWHERE.keys()
    assert commands >= RUN_HERE
    for command, (path, text) in RUN_ELSEWHERE.items():
        assert text in (ROOT / path).read_text(encoding="utf-8"), command


def test_the_readmes_are_found():
    assert ROOT / "README.md" in READMES


def test_commands_are_found_in_blocks_only():
    text = "python -m no\n```bash\na && b --c  # why\n\n# nothing\n```\n```\nd\n```\n`e`\n```bash\nf | g\n```\n"
    assert bash_commands(text) == ["a", "b --c", "f | g"]


# --- every README ---


def module_calls(path):
    """(module, arguments) of every `python -m` in the bash blocks of a file, and between its backticks."""
    text = path.read_text(encoding="utf-8")
    stages = {f"nemotron.recipes.nano2.{folder.name}" for folder in (ROOT / "recipes" / "nano2").glob("stage*")}
    inline = re.findall(r"(?<!`)`(python -m nemotron[^`]*)`(?!`)", text)
    for command in [*bash_commands(text), *inline]:
        for part in command.split("|"):
            words = shlex.split(re.split(r" [<>] ", part)[0])
            if words and words[0] == "torchrun":
                words = ["python", "-m", *words[words.index("-m") + 1 :]]
            if words[:2] == ["python", "-m"]:
                module, *arguments = words[2:]
                if module.endswith("..."):
                    continue  # any module
                for stage in stages if "$stage" in module else [""]:
                    yield module.replace("$stage", stage), arguments


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_has_flags_that_exist(path):
    for module, arguments in module_calls(path):
        if module.startswith("coins."):
            continue  # of docs/add-recipe.md, which test_add_recipe.py runs
        spec = find_spec(module)
        assert spec, f"{path}: there is no module {module}"
        if module.startswith(("nemotron.testing.", "nemotron.report")) or module.endswith(".nano2.numbers"):
            continue  # commands without a Config, tested with their flags in the tests of these modules
        if module.endswith(".chat_cli"):
            tyro.cli(ChatConfig, args=arguments)
        elif module == "nemotron.lineage":
            tyro.cli(LineageConfig, args=arguments)
        elif "--help" not in arguments:
            name = module if spec.submodule_search_locations is None else f"{module}.__main__"
            parse_command_line(importlib.import_module(name).Config, arguments)
            set_lineage_tracker(None)  # --tracker sets it


def flags_of(config_class, prefix="--"):
    """The flags of a Config and of those nested in it, as on the command line."""
    for item in dataclasses.fields(config_class):
        flag = prefix + item.name.replace("_", "-")
        yield f"{flag}." if "nested" in item.metadata else flag
        if item.type is bool:
            yield f"{prefix}no-{flag.removeprefix(prefix)}"
        if "nested" in item.metadata:
            yield from flags_of(item.metadata["nested"], f"{flag}.")


OF_OTHER_PROGRAMS = {"--help", "--tracker", "--additional-suffix", "--snapshot-update"}
"""Of every program; of split; of syrupy."""


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_flag_in_a_text_exists(path):
    """Between backticks, of the recipe, its stages and steps; or of a script. CHANGELOG.md has old ones."""
    if path.name == "CHANGELOG.md":
        return
    configs = [nano2.Config, ChatConfig, LineageConfig]
    for stage in nano2.STAGES.values():
        steps = (*stage.STEPS, *getattr(stage, "OPTIONAL_STEPS", ()))
        configs += [stage.Config, *(step.Config for step in steps)]
    known = {flag for config in configs for flag in flags_of(config)} | OF_OTHER_PROGRAMS
    scripts = [*(ROOT / "nemotron/testing").glob("*.py"), *(ROOT / "tests/pipelines").glob("*.py")]
    code = "".join(script.read_text(encoding="utf-8") for script in scripts)
    fields = "".join(script.read_text(encoding="utf-8") for script in (ROOT / "benchmarks").glob("*.py"))
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", text)
    unknown = {flag for found in inline for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", found)} - known
    assert {
        flag
        for flag in unknown
        if f'"{flag}"' not in code and not re.search(rf"^    {flag[2:].replace('-', '_')}: ", fields, re.MULTILINE)
    } == set()


def test_commands_of_other_modules_are_read_too(tmp_path):
    (tmp_path / "README.md").write_text(
        "`python -m a.b --c`\n```bash\nX=1\npython -m $stage.d < e | python -m f 'g h'\n```\n"
    )
    found = sorted((module, *arguments) for module, arguments in module_calls(tmp_path / "README.md"))
    assert found == [
        ("f", "g h"),
        ("nemotron.recipes.nano2.stage0_pretrain.d",),
        ("nemotron.recipes.nano2.stage1_sft.d",),
        ("nemotron.recipes.nano2.stage2_rlvr.d",),
        ("nemotron.recipes.nano2.stage3_dpo.d",),
        ("nemotron.recipes.nano2.stage4_rlhf.d",),
        ("nemotron.recipes.nano2.stage5_compress.d",),
    ]


def test_each_stage_of_the_diagram_goes_on_from_the_one_before():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [diagram] = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    numbers = sorted(int(one) for one in re.findall(r"subgraph stage(\d)", diagram))
    assert re.findall(r"stage(\d) ==>.* stage(\d)", diagram) == [(str(n - 1), str(n)) for n in numbers[1:]]
    assert "==>" not in text.replace(diagram, "")


def test_the_rows_of_the_reading_route_are_numbered_and_add_up():
    """To the half hour that the text above them names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    hours, route = re.search(
        r"\n(\w+(?: and a half)?) hours at 10 to 15 lines(.*?)\nThe rest of", text, re.DOTALL
    ).groups()
    rows = re.findall(r"^\| (\d+) \| .* \| (\d+) \| .* \|$", route, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert len(rows) == len(re.findall(r"^.+$", route.partition("|---|---|---|---|")[2], re.MULTILINE))
    names = {"Five": 5, "Five and a half": 5.5, "Six": 6, "Six and a half": 6.5, "Seven": 7}
    assert abs(sum(int(minutes) for _, minutes in rows) / 60 - names[hours]) <= 0.25


def broken_links(path):
    """The relative links and images of a Markdown file that name no file, directory or heading."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, heading = link.partition("#")
        if "://" in name:
            continue
        target = path.parent / name if name else path
        if not target.exists() or (heading and heading not in headings(target)):
            yield link


def headings(path):
    """The headings of a Markdown file, spelled as in links to them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_or_heading(path):
    assert list(broken_links(path)) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "b.md").write_text("# One, two\n")
    text = "# Top\n[a](b.md#one-two) [a](#top) [a](https://c.d) ![a](.)\n```\n[a](in-code)\n```\n"
    (tmp_path / "README.md").write_text(text + "![a](no.svg) [a](b.md#three) [a](#bottom) [a](no.md#one-two)\n")
    assert list(broken_links(tmp_path / "README.md")) == ["no.svg", "b.md#three", "#bottom", "no.md#one-two"]


def test_the_workflow_compares_the_goldens_on_every_system_that_the_readme_names():
    jobs = re.split(
        r"^  (?=\w[\w-]*:$)", (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    (tiny,) = (job for job in jobs if job.startswith("tiny:"))
    (windows,) = (job for job in jobs if job.startswith("windows:"))
    assert re.search(r"runs-on: (.*)", tiny)[1] == "${{ matrix.system }}"
    systems = re.search(r"system: \[(.*)\]", tiny)[1].split(", ")
    assert [name.partition("-")[0] for name in systems] == ["ubuntu", "ubuntu", "macos"]
    assert sum(name.endswith("-arm") for name in systems) == 1
    assert "nox -s tiny" in tiny
    assert "nox -s portable" in windows
    table = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .partition("| where | what was run there |")[2]
        .partition("\n\n")[0]
    )
    for system in ("Linux on x86-64", "Linux on arm64, macOS", "Windows"):
        assert f"\n| {system}" in table


# --- the catalogs of mutants ---


@pytest.mark.parametrize("stage", ["stage2_rlvr", "stage3_dpo", "stage4_rlhf", "stage5_compress"])
def test_the_rows_about_mutants_have_the_counts_of_the_catalog(stage):
    """Those of the measurements of the tests and, if its row counts reports, of the README of the stage."""
    mutants = tomllib.loads((ROOT / f"tests/mutants/nano2/{stage}.toml").read_text(encoding="utf-8"))["mutant"]
    incidents = [one for one in mutants if one.get("incident")]
    named = sum(one["source"].startswith("https://") for one in incidents)
    counts = f"{len(incidents)} incidents, of which {named} name a report and {len(incidents) - named} a class"
    texts = [
        (ROOT / path).read_text(encoding="utf-8") for path in ("tests/README.md", f"recipes/nano2/{stage}/README.md")
    ]
    [row] = re.findall(rf"^\| mutants of stage {stage[5]} .*$", texts[0], re.MULTILINE)
    own = [one for one in re.findall(r"^\| mutants .*$", texts[1], re.MULTILINE) if "name a report" in one]
    assert own or stage == "stage5_compress"
    for one in (row, *own):
        assert counts in one
        assert str(len(mutants)) in one


# --- docs/run-for-real.md ---

FOR_REAL = ROOT / "docs" / "run-for-real.md"
PROGRAMS_OF_OTHERS = {
    "hf download nvidia/NVIDIA-Nemotron-Nano-9B-v2 --local-dir models/nano",
    'pip install "nemotron-recipes[ray]"',
    "ray start --head --port 6379",
    "ray start --address first-machine:6379",
    "export DAFT_RUNNER=ray RAY_ADDRESS=first-machine:6379",
}
"""What the commands for machines that are not here begin with; their flags cannot be checked here."""


def test_a_command_of_run_for_real_is_run_here_or_says_what_it_needs():
    blocks = re.findall(r"^```bash\n(.*?)^```", FOR_REAL.read_text(encoding="utf-8"), re.M | re.S)
    commands = {block: bash_commands(f"```bash\n{block}```") for block in blocks}
    assert {one for block in blocks if not block.startswith("# needs ") for one in commands[block]} == {DEVICES_PLAN}
    needing = [one for block in blocks if block.startswith("# needs ") for one in commands[block]]
    programs = {one for one in needing if not one.startswith(("python -m nemotron.", "torchrun "))}
    assert programs == PROGRAMS_OF_OTHERS
    assert len(needing) > len(programs)


def test_torchrun_has_the_flags_of_run_for_real():
    """Those of the training step itself are checked above, as those of every command."""
    lines = [one for one in bash_commands(FOR_REAL.read_text(encoding="utf-8")) if one.startswith("torchrun ")]
    parsed = [get_args_parser().parse_args(shlex.split(line)[1:]) for line in lines]
    assert [(one.nnodes, one.nproc_per_node) for one in parsed] == [("1:1", "8")] * 4 + [("2", "8")]
    stages = ["stage1_sft", "stage2_rlvr", "stage2_rlvr", "stage0_pretrain", "stage0_pretrain"]
    assert [one.training_script for one in parsed] == [f"nemotron.recipes.nano2.{stage}.training" for stage in stages]


def test_the_memory_of_the_9b_in_run_for_real_is_that_of_the_plan():
    text = " ".join(FOR_REAL.read_text(encoding="utf-8").split())
    train = fine_tuning.Config(scale="medium")
    length = fine_tuning_data.Config(scale="medium").sequence_length
    rows = Pass(train.batch_sequences, train.micro_batch_sequences, length, documents=True)

    def gigabytes(config, use, devices):
        return f"{sum(memory_of_use(PUBLISHED_9B, config, use, devices).values()) / 1e9:.1f}"

    one, four, eight = (gigabytes(train, rows, devices) for devices in (1, 4, 8))
    assert f"{one} GB on one device, {four} on each of 4 and {eight} on each of 8" in text
    longest = rlvr_data.Config(scale="medium").max_prompt_tokens
    needs = {}
    for tokens in (1024, 2048, 4096):
        rl = rlvr.Config(scale="medium", max_new_tokens=tokens)
        writing, learning = rl.needs(PUBLISHED_9B, longest).uses
        needs[tokens] = [gigabytes(rl, use, 8) for use in (writing, learning)]
    assert f"needs {gigabytes(rl, learning, 1)} GB on one device" in text
    assert needs[1024][0] == needs[2048][0]
    assert f"needs {needs[2048][0]} GB for any `--max-new-tokens` up to 2048, and {needs[4096][0]} for 4096" in text
    learned = [needs[tokens][1] for tokens in needs]
    assert f"needs {learned[0]} GB for 1024, {learned[1]} for 2048 and {learned[2]} for 4096" in text


# --- docs/security.md ---

SECURITY = ROOT / "docs" / "security.md"


def test_the_measured_figures_of_security_are_those_of_the_tests():
    """Numbers in front of the last column, which has commands."""
    measured = SECURITY.read_text(encoding="utf-8").partition("\n## Measured\n")[2]
    rows = [line.rsplit("|", 2)[0] for line in measured.splitlines() if line.startswith("| ")][1:]
    figures = {figure for row in rows for figure in re.findall(r"\d[\d,]*\d|\d", row)}
    assert len(figures) > 5
    known = re.findall(r"\d[\d,]*\d|\d", (ROOT / "tests" / "README.md").read_text(encoding="utf-8"))
    assert figures <= {*known}


def test_the_limits_of_security_are_those_of_the_code():
    text = SECURITY.read_text(encoding="utf-8")
    limits = text[text.index("### Limits of a source") : text.index("## Not promised")]
    mib, size = 1 << 20, MAX_SIZE.bit_length() - 1
    for limit in (
        f"| {reading.MAX_DOCUMENT_CHARACTERS:,} |",
        f"| bytes of a line, or of a decoded .parquet row | {reading.MAX_LINE_BYTES // mib} MiB |",
        f"with {reading.ROW_BYTES} for each row | {reading.MAX_EXPANSION} times its size, at least "
        f"{reading.FREE_BYTES // mib} MiB |",
        f"| unreadable rows of a file | {reading.MAX_UNREADABLE_ROWS:,} |",
        f"| {reading.MAX_ROW_GROUP_VALUES:,} |",
        f"| files and folders of a local source | {listing.MAX_LISTED:,} |",
        f"| characters of an id | {reading.MAX_ID_CHARACTERS:,} |",
        f"| a JSON file | {strict.MAX_JSON_BYTES // mib} MiB, {strict.MAX_JSON_DEPTH} nested lists and objects |",
        f"| {MAX_TOKENIZER_BYTES // mib} MiB |",
        f"| layers | {MAX_LAYERS:,} |",
        f"| a size; heads times their size; groups times states | 2^{size} |",
        "| 2^{}, {}, 2^{} |".format(
            OTHER_LIMITS["chunk_size"].bit_length() - 1,
            OTHER_LIMITS["conv_kernel"],
            OTHER_LIMITS["max_position_embeddings"].bit_length() - 1,
        ),
        f"| {template.MAX_TEMPLATE_BYTES // mib} MiB |",
        f"| {template.RENDER_SECONDS:g} seconds, {template_process.MAX_BYTES >> 30} GiB of memory (time only on "
        f"Windows), 2^{template_process.MAX_CHARACTERS.bit_length() - 1} characters |",
    ):
        assert limit in limits


# --- README.md ---


def bash(command, cwd, stdin=subprocess.DEVNULL):
    """Run one command of the README; `python` is this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}  # more threads wait for those of other commands
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail\n{STAGE}\n{command}"],
        cwd=cwd,
        env=environment,
        stdin=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The slow commands side by side, each in an empty directory: command -> directory, and how it ended."""
    directories = {command: tmp_path_factory.mktemp("empty") for command in (WHOLE, PLAN, DEVICES_PLAN)}
    with ThreadPoolExecutor() as pool:
        done = pool.map(bash, directories, directories.values())
        return {command: (directory, one) for (command, directory), one in zip(directories.items(), done, strict=True)}


@pytest.fixture(scope="module")
def whole(started):
    """The first command of the README: its directory, and how it ended."""
    return started[WHOLE]


def check_artifacts(directory, stdout, *names):
    """`stdout` is one line of JSON that names the artifacts of a step or stage."""
    (line,) = stdout.splitlines()
    entries = json.loads(line)
    assert list(entries) == list(names)
    for entry in entries.values():
        path = Path(entry["path"])
        assert path.is_relative_to(directory)
        assert json.loads((path / "metadata.json").read_text())["digest"] == entry["digest"]


def test_first_command_trains_every_stage_and_ends_with_one_line_of_json(whole):
    directory, done = whole
    assert done.returncode == 0, done.stderr
    check_artifacts(directory, done.stdout, "dataset", "pruned", "checkpoint", "control", "results")
    assert [entry.name for entry in directory.iterdir()] == ["outputs"]
    assert sorted(path.name for path in (directory / "outputs/nano2/tiny").iterdir()) == [
        "report.html",
        "report.md",
        "stage0_pretrain",
        "stage1_sft",
        "stage2_rlvr",
        "stage3_dpo",
        "stage4_rlhf",
        "stage5_compress",
    ]
    assert {Path(entry["path"]).parent.name for entry in json.loads(done.stdout).values()} == {"stage5_compress"}


def test_first_command_reproduces_every_golden(whole):
    lines = [line for line in whole[1].stderr.splitlines() if "reproduces" in line]
    assert [line.partition(" (")[0] for line in lines] == [
        "reproduces golden/nano2/stage0_pretrain.json: yes",
        "reproduces golden/nano2/stage1_sft.json: yes",
        "reproduces golden/nano2/stage2_rlvr.json: yes",
        "reproduces golden/nano2/stage3_dpo.json: yes",
        "reproduces golden/nano2/stage4_rlhf.json: yes",
        "reproduces golden/nano2/stage5_compress.json: yes",
    ]
    assert whole[1].stderr.splitlines()[-6:] == lines


def test_commands_after_the_first_one_work_on_its_outputs(whole):
    """Side by side, to save time: one step by itself, the chat through a pipe, the chat in a terminal."""
    directory, _ = whole
    ours, theirs = pty.openpty()
    os.write(ours, b"/no_think\n/exit\n")
    try:
        with ThreadPoolExecutor() as pool:
            step = pool.submit(bash, EVALUATION, directory)
            piped = pool.submit(bash, PIPED_CHAT, directory)
            terminal = pool.submit(bash, CHAT, directory, theirs)
            done = {"step": step.result(), "piped": piped.result(), "terminal": terminal.result()}
    finally:
        os.close(ours)
        os.close(theirs)
    for name, one in done.items():
        assert one.returncode == 0, f"{name}: {one.stderr}"
    check_artifacts(directory, done["step"].stdout, "results")
    assert done["piped"].stdout.strip()
    assert "</think>" not in done["piped"].stdout
    assert "thinking is off" in done["terminal"].stderr


@pytest.mark.parametrize("command", sorted(ON_OUTPUTS))
def test_every_command_on_the_outputs_of_the_first_one_works(whole, command, monkeypatch, capfd):
    """In this process, which has imported everything: a stage finds its artifacts current."""
    directory, _ = whole
    (_, _, module, *arguments) = shlex.split(command)
    spec = find_spec(module)
    place = f"{module}.__main__" if spec.submodule_search_locations is not None else module
    monkeypatch.setattr("sys.argv", [module, *arguments])
    monkeypatch.chdir(directory)
    before = sorted(directory.rglob("*"))
    if "--help" in arguments:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(find_spec(place).origin, run_name="__main__")
        assert ended.value.code == 0
    else:
        runpy.run_path(find_spec(place).origin, run_name="__main__")
    said = capfd.readouterr()
    assert said.out
    steps = {stage.__name__.removesuffix(".__main__"): stage.STEPS for stage in nano2.STAGES.values()}
    if command == STAGE_COMMAND.format(stage=module.rpartition(".")[2]):
        assert said.err.count(" is current, and not run again\n") == len(steps[module])
    assert sorted(directory.rglob("*")) == before


def test_the_models_of_all_later_stages_chat(whole):
    directory, _ = whole
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda chat: bash(f'echo "What is 3 + 4? /no_think" | {chat}', directory), sorted(CHATS)))
    assert [one.returncode for one in done] == [0, 0, 0, 0], [one.stderr for one in done]
    assert all(one.stdout.strip() for one in done)


def test_plan_of_full_scale_is_printed_and_nothing_runs(started):
    directory, done = started[PLAN]
    assert done.returncode == 0, done.stderr
    assert "12,310,001,152" in done.stdout
    assert list(directory.iterdir()) == []


def test_plan_of_medium_on_8_devices_is_printed_and_nothing_runs(started):
    directory, done = started[DEVICES_PLAN]
    assert done.returncode == 0, done.stderr
    assert "memory of a training step on each of 8 devices, with FSDP2" in done.stdout
    assert list(directory.iterdir()) == []


def test_plan_of_the_recipe_is_that_of_stage_0_and_a_line_for_each_step(tmp_path, monkeypatch, capfd):
    """Counting the steps of full takes seconds, so the page itself is replaced."""
    planned = []
    monkeypatch.setattr(plan, "page", lambda config: planned.append(config) or "the page")
    monkeypatch.setattr(fine_tuning_plan, "page", lambda config: "the page of fine-tuning")
    monkeypatch.setattr(rollout_plan, "page", lambda config: f"the page of {type(config).__module__.split('.')[-2]}")
    monkeypatch.setattr(compression_plan, "page", lambda config: "the page of compression")
    monkeypatch.setattr("sys.argv", ["nano2", "--scale", "full", "--plan", "--devices", "64"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(find_spec("nemotron.recipes.nano2.__main__").origin, run_name="__main__")
    path = Path("outputs/nano2/full/stage0_pretrain")
    assert planned == [Stage0Config(scale="full", output_dir=path, plan=True, devices=64)]
    pages, lines = (said := capfd.readouterr().out.splitlines())[:6], said[6:]
    assert pages == [
        "the page",
        "the page of fine-tuning",
        "the page of stage2_rlvr",
        "the page of stage3_dpo",
        "the page of stage4_rlhf",
        "the page of compression",
    ]
    stages = [line for line in lines if not line.startswith(" ")]
    assert stages == sorted(path.name for path in (ROOT / "recipes/nano2").glob("stage*"))
    assert lines[1:3] == [
        "  data_curation   runs: not made yet",
        "  training        runs: not made yet",
    ]
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_recipe_fits_on_one_screen_and_may_be_cut():
    command = f"{shlex.quote(sys.executable)} -m nemotron.recipes.nano2 --help"
    whole, cut = (bash(line, ROOT) for line in (command, f"{command} | head -3"))
    rows = [row for line in whole.stdout.splitlines() for row in (range(0, len(line), 80) or [0])]
    assert whole.returncode == 0
    assert len(rows) <= 40
    assert "Traceback" not in cut.stderr


def test_own_text_is_read_from_the_sources_of_the_command(tmp_path, monkeypatch):
    """Only its first step is run here: what follows does not depend on where the text comes from."""
    draw = random.Random(0)
    nouns, verbs = (
        ["graph", "matrix", "field", "group", "series", "parser", "kernel"],
        ["returns", "checks", "prints", "copies", "splits"],
    )

    def prose():
        return " ".join(
            f"The {draw.choice(nouns)} {draw.choice(verbs)} {draw.randrange(1000)} of the {draw.choice(nouns)}."
            for _ in range(12)
        )

    def code(number):
        name = draw.choice(nouns)
        return "\n".join(f"def {name}_{number}_{i}(x):\n    return x + {draw.randrange(1000)}\n" for i in range(20))

    (tmp_path / "src" / "below").mkdir(parents=True)
    for number in range(60):
        (tmp_path / "src" / "below" / f"{number}.txt").write_text(code(number))
    (tmp_path / "notes").mkdir()
    for number in range(2):
        lines = (json.dumps({"text": prose()}) + "\n" for _ in range(60))
        (tmp_path / "notes" / f"{number}.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    config = parse_command_line(Stage0Config, shlex.split(OWN_TEXT)[3:])
    assert config.data.sources == ("code=src/**/*.txt", "crawl-high=notes/*.jsonl")
    dataset = data_curation.main(config.data)
    assert dataset.path == tmp_path / "outputs/nano2/tiny/stage0_pretrain/data_curation"
    assert dataset.blend["phase1"].keys() == {"code", "crawl-high"}
