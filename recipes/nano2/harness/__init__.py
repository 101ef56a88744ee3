"""Evaluation by lm-evaluation-harness, the tool of the field: published benchmarks, and our exercises as its tasks.

In: the Hugging Face directory of a Checkpoint, names of tasks. Out: lm_eval.md and lm_eval.json, and metrics.
Any task of lm-eval runs where its data is on this machine or can be fetched. Three tasks need no data, and score what
our own evaluation scores: nemotron_problems, nemotron_replies, nemotron_exercises (the YAML files here).

    pip install "nemotron-recipes[lm-eval]"
    python -m nemotron.recipes.nano2.stage0_pretrain.evaluation --harness lm-eval --tasks gsm8k_cot hellaswag

Settings and scores: arXiv 2508.14444, tables 5, 6 and 8, for the 12B. What is not published has its proxy beside it.
Left out: Math-Verify, EvalPlus and the mean over 32 samples of the published scores of mathematics and code; tasks that
run code that the model wrote, which need a sandbox: lm-eval runs them itself with --confirm_run_unsafe_code.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any, Literal

from pydantic.dataclasses import dataclass as checked_dataclass

from nemotron.config import ScaledConfig, only_if_given
from nemotron.strict import one_sentence
from nemotron.terminal import print_line

TASK_FILES = Path(__file__).parent
OUR_TASKS = frozenset(path.stem for path in TASK_FILES.glob("*.yaml"))


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark was run, and what the 12B scored, in percent."""

    score: float
    shots: int
    origin: str
    """Where the number of shots comes from."""
    metric: str
    """Beginning of the name of lm-eval's metric that is compared with the score."""


N3 = "proxy: Nemotron 3 Nano"
BASE = {
    "mmlu": Benchmark(78.24, 5, N3, "acc"),
    "mmlu_pro": Benchmark(63.98, 5, "published", "exact_match"),
    "gsm8k_cot": Benchmark(91.66, 8, N3, "exact_match"),
    "minerva_math": Benchmark(83.54, 4, N3, "exact_match"),
    "arc_challenge": Benchmark(93.26, 25, N3, "acc_norm"),
    "hellaswag": Benchmark(84.00, 10, N3, "acc_norm"),
    "openbookqa": Benchmark(46.00, 0, N3, "acc_norm"),
    "piqa": Benchmark(82.54, 0, N3, "acc_norm"),
    "winogrande": Benchmark(79.24, 5, N3, "acc"),
}
"""Of the base model: tables 5 and 6."""
ALIGNED = {
    "aime24": Benchmark(85.42, 0, "our choice", "exact_match"),
    "aime25": Benchmark(76.25, 0, "our choice", "exact_match"),
    "minerva_math500": Benchmark(97.75, 0, "our choice", "exact_match"),
    "gpqa_diamond_cot_zeroshot": Benchmark(64.48, 0, "our choice", "exact_match"),
    "ifeval": Benchmark(89.81, 0, "our choice", "prompt_level_strict_acc"),
}
"""Of the model after the last stage, with thinking: table 8."""
# Proxy: the 9B in NVIDIA's NeMo-Skills. A base model answers greedily, once.
TEMPERATURE, TOP_P, MAX_NEW_TOKENS, NUM_SEEDS = 0.6, 0.95, 32_768, 8


@checked_dataclass
class HarnessConfig(ScaledConfig):
    """Base of the Config of an evaluation step: what lm-eval is asked beside it."""

    harness: Literal["none", "lm-eval"] = only_if_given("none")
    """Whether lm-eval runs the benchmarks in --tasks beside this evaluation."""
    tasks: tuple[str, ...] = only_if_given(())
    """Tasks of lm-eval; nemotron_problems, nemotron_replies and nemotron_exercises are ours and need no data."""

    def check(self) -> None:
        if self.harness == "none":
            if self.tasks:
                raise ValueError(f"tasks={' '.join(self.tasks)} have no effect without --harness lm-eval; add it")
            return
        if not self.tasks:
            raise ValueError("--harness lm-eval runs nothing without --tasks; name at least one")
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError('lm-eval is not installed; run pip install "nemotron-recipes[lm-eval]"')
        others = set(self.tasks) - OUR_TASKS
        if others and (unknown := sorted(others - known_tasks())):
            raise ValueError(f"lm-eval has no task {unknown[0]}; `lm-eval ls tasks` lists them")


@cache
def known_tasks() -> frozenset[str]:
    """The tasks of the installed lm-eval, which takes ten seconds to list them."""
    from lm_eval.tasks import TaskManager

    return frozenset(TaskManager().all_tasks)


def run_harness(
    config: Any, model_path: Path, work: Path, documents: Mapping[str, int] = MappingProxyType({})
) -> dict[str, float]:
    """Run the tasks, write lm_eval.md and lm_eval.json into `work`, and return the metrics; nothing without --harness.

    Args:
        config: a HarnessConfig with a seed and a device.
        model_path: Hugging Face directory of the model.
        documents: `number` in each family and `seed`, for our tasks.
    Raises:
        ValueError: if the data of a task can be neither found nor fetched.
    """
    if config.harness == "none":
        return {}
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(TASK_FILES),
        include_defaults=not OUR_TASKS.issuperset(config.tasks),
        metadata={"pretrained": str(model_path), **documents},
    )
    aligned = bool(json.loads((model_path / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    end_of_thought = {"think_end_token": "</think>"} if aligned else {}
    model = HFLM(str(model_path), device=config.device, dtype="auto", batch_size=1, **end_of_thought)
    metrics: dict[str, float] = {}
    rows, found = [], {}
    for task in config.tasks:
        benchmark = (ALIGNED if aligned else BASE).get(task)
        is_ours = task in OUR_TASKS
        seeds = range(config.seed, config.seed + (NUM_SEEDS if aligned and not is_ours else 1))
        results = [run_task(model, manager, task, benchmark, seed, aligned and not is_ours) for seed in seeds]
        found[task] = results
        for name in sorted(name for name, value in results[0].items() if isinstance(value, float | int)):
            values = [float(result[name]) for result in results]
            metrics[f"lm_eval/{task}/{name.partition(',')[0]}"] = fmean(values)
            spread = f" ± {stdev(values):.3g}" if len(values) > 1 else ""
            is_compared = benchmark is not None and name.partition(",")[0] == benchmark.metric
            published = f"{benchmark.score}, 12B" if benchmark and is_compared else ""
            shots = f"{benchmark.shots}, {benchmark.origin}" if benchmark else "the task's"
            rows.append(f"| {task} | {name} | {fmean(values):.4g}{spread} | {published} | {shots} | {len(values)} |")
    head = "| task | metric | this model | published, percent | shots | seeds |\n|---|---|---|---|---|---|\n"
    table = head + "\n".join(rows) + "\n"
    (work / "lm_eval.md").write_text(table, encoding="utf-8", newline="\n")
    (work / "lm_eval.json").write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8", newline="\n")
    print_line(f"lm-eval: {', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}")
    return metrics


def run_task(
    model: Any, manager: Any, task: str, benchmark: Benchmark | None, seed: int, drawn: bool
) -> dict[str, float | str]:
    """What lm-eval reports of a task: metric -> value. Without a published setting, the task's own applies.

    Args:
        drawn: whether replies are drawn after the chat template, as published for the aligned model.
    """
    from lm_eval import simple_evaluate

    drawing = f"do_sample=true,temperature={TEMPERATURE},top_p={TOP_P},max_gen_toks={MAX_NEW_TOKENS}"
    try:
        result = simple_evaluate(
            model,
            tasks=[task],
            num_fewshot=benchmark.shots if benchmark else None,
            task_manager=manager,
            apply_chat_template=drawn,
            gen_kwargs=drawing if drawn else None,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            bootstrap_iters=0,
            log_samples=False,
        )
    except OSError as error:  # requests and datasets raise nothing else if there is no data and no network
        raise ValueError(f"lm-eval cannot read the data of {task}: {one_sentence(error)}") from None
    return {name: value for name, value in result["results"][task].items() if "stderr" not in name}
