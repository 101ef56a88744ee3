"""What is computed in bfloat16, and what is not, in every step that trains: observed while the steps run.

Those are the training steps of stages 0 to 5, the reward model of stage 4, and the search and the control of stage 5.

The dtypes are facts on every processor. The losses lie between two bounds: bfloat16 must change them, and not by much.
"""

import re
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from nemotron.recipes.curation.packing import concatenate_documents
from nemotron.recipes.curation.rows import TOKENS, planned_phase
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, encode_documents, save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage0_pretrain import data_curation as data0
from nemotron.recipes.nano2.stage0_pretrain import evaluation as evaluation0
from nemotron.recipes.nano2.stage0_pretrain import training as training0
from nemotron.recipes.nano2.stage1_sft import data_curation as data1
from nemotron.recipes.nano2.stage1_sft import evaluation as evaluation1
from nemotron.recipes.nano2.stage1_sft import training as training1
from nemotron.recipes.nano2.stage2_rlvr import data_curation as data2
from nemotron.recipes.nano2.stage2_rlvr import evaluation as evaluation2
from nemotron.recipes.nano2.stage2_rlvr import training as training2
from nemotron.recipes.nano2.stage3_dpo import data_curation as data3
from nemotron.recipes.nano2.stage3_dpo import evaluation as evaluation3
from nemotron.recipes.nano2.stage3_dpo import training as training3
from nemotron.recipes.nano2.stage4_rlhf import data_curation as data4
from nemotron.recipes.nano2.stage4_rlhf import reward_model as reward_model4
from nemotron.recipes.nano2.stage4_rlhf import training as training4
from nemotron.recipes.nano2.stage5_compress import control as control5
from nemotron.recipes.nano2.stage5_compress import data_curation as data5
from nemotron.recipes.nano2.stage5_compress import search as search5
from nemotron.recipes.nano2.stage5_compress import training as training5
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_tensors
from nemotron.recipes.nemotron_h.model import AttentionState, MambaState, parameter_groups
from nemotron.recipes.nemotron_h.scorer import HEAD, HEAD_FILE, load_scorer
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.sources.problems import arithmetic
from nemotron.recipes.training import run as run_module
from nemotron.recipes.training.run import Run

WEIGHTS = "model.safetensors"
LENGTH, LONG_LENGTH = 64, 128
SEQUENCES = {"phase1": 24, "phase2": 12, "phase3": 4, "long_context": 4}
PRETRAINING = {
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "batch_sequences": 4,
    "micro_batch_sequences": 2,
    "long_context_batch_sequences": 2,
    "checkpoint_every_steps": 5,
    "validate_every_steps": 6,
    "validation_sequences": 2,
}
FEW_CONVERSATIONS = {"raw_conversations": 4_000, "exercises_per_family": 1, "rest_share": 0.3}
FINE_TUNING = {"checkpoint_every_steps": 4, "validate_every_steps": 5, "validation_sequences": 1}
FEW_PROMPTS = {"raw_prompts": 3_200, "max_new_tokens": 12, "exercises_per_family": 1, "held_out_instructions": 4}
REINFORCEMENT = {
    "prompts_per_step": 4,
    "replies_per_prompt": 3,
    "max_new_tokens": 12,
    "warmup_steps": 1,
    "checkpoint_every_steps": 2,
}
FEW_TASKS = {
    "raw_tasks": 2_400,
    "thinking_share": 0.0,
    "max_turns": 1,
    "max_new_tokens": 20,
    "exercises_per_family": 1,
    "held_out_tasks": 3,
    "max_prompt_tokens": 490,
}
PREFERENCES = {"rounds": 2, "steps_per_round": 1, "max_turns": 1, "max_new_tokens": 20, "warmup_steps": 1}
FEW_PAIRS = {
    "raw_pairs": 2_000,
    "raw_prompts": 600,
    "sampled_share": 0.2,
    "max_new_tokens": 10,
    "held_out_pairs": 6,
    "held_out_prompts": 1,
    "validation_prompts": 1,
    "validation_exercises": 1,
    "exercises_per_family": 1,
}
REWARDING = {"pairs_per_step": 6, "micro_batch_pairs": 6, "warmup_steps": 1, "checkpoint_every_steps": 2}
FEEDBACK = {
    "prompts_per_step": 3,
    "replies_per_prompt": 3,
    "max_new_tokens": 10,
    "hacking_window": 1,
    "checkpoint_every_steps": 1,
}
FEW_ROWS = {
    "calibration_samples": 4,
    "lengths": (32, 64),
    "sequences": (8, 4),
    "validation_rows": 1,
    "exercises_per_family": 1,
}
GRID = {
    "depths": (5,),
    "hidden_sizes": (48,),
    "intermediate_sizes": (192, 256),
    "mamba_heads": (6,),
    "num_candidates": 1,
    "candidate_steps": 2,
    "batch_sequences": 4,
}
DISTILLATION = {"batch_sequences": (4, 4), "micro_batch_sequences": (4, 4), "warmup_steps": 1}


def filled(artifact_class, path, **known):
    """An artifact with `known` fields; the others, which no step here reads, get an empty value of their type."""
    (path / "unread").write_text("")
    empty = {int: 1, float: 0.0, str: "", Path: path / "unread", dict: {}, list: []}
    for name, field in artifact_class.model_fields.items():
        if name not in known and name != "path" and field.is_required():
            known[name] = empty[get_origin(field.annotation) or field.annotation]
    return artifact_class(path=path, **known).save()


@pytest.fixture(scope="module")
def pretraining_data(tmp_path_factory):
    """A Dataset of the questions of exercises; with PRETRAINING it takes 6, 3, 1 and 2 steps."""
    path = tmp_path_factory.mktemp("dataset")
    texts = [
        message["content"]
        for family in FAMILIES.values()
        for exercise in family.generate_exercises(20, 0, split="train")
        for message in exercise.messages
    ]
    tokenizer = train_tokenizer(texts, 400)
    save_tokenizer(tokenizer, path / "tokenizer")
    stream = concatenate_documents(encode_documents(tokenizer, texts), END_OF_DOCUMENT).tolist()

    def write(name, rows, length):
        starts = [len(stream) * row // rows % (len(stream) - length) for row in range(rows)]
        tokens = pa.array([stream[start : start + length + 1] for start in starts], TOKENS)
        phase = planned_phase(name, rows, length)
        (path / name).mkdir()
        pq.write_table(pa.table({"category": ["code"] * rows, "tokens": tokens}), *phase.paths(path))
        return phase

    phases = [write(name, rows, LONG_LENGTH if name == "long_context" else LENGTH) for name, rows in SEQUENCES.items()]
    validation, long = write("validation", 4, LENGTH), write("long", 2, LONG_LENGTH)
    problems = arithmetic.generate_problems(2, 0, split="evaluation")
    columns = {name: [getattr(problem, name) for problem in problems] for name in ("id", "question", "correct")}
    choices = [list(problem.choices) for problem in problems]
    pq.write_table(pa.table({**columns, "choices": choices}), path / "problems.parquet")
    facts = {"tokens": [stream[:40], stream[50:90]], "answer_start": [37, 37], "distance": [16, 32]}
    pq.write_table(pa.table(facts), path / "recall.parquet")
    return filled(
        data0.Dataset,
        path,
        vocab_size=400,
        sequence_length=LENGTH,
        long_context_length=LONG_LENGTH,
        tokenizer_path=path / "tokenizer",
        phases=phases,
        validation_path=validation.paths(path)[0],
        long_validation_path=long.paths(path)[0],
        problems_path=path / "problems.parquet",
        recall_path=path / "recall.parquet",
        blend={
            name: {"code": data0.BlendShare(weight=1.0, num_sequences=rows, epochs=0.25)}
            for name, rows in SEQUENCES.items()
        },
    )


ACTIVITIES = {
    "validation": [
        (training0, "validation_losses"),
        (training1, "validation_losses"),
        (reward_model4, "held_out_rows"),
        (search5, "held_out_kl"),
        (training5, "validation_losses"),
    ],
    "sample": [(training0, "write_sample")],
    "rollouts": [(training2, "draw_replies"), (training3, "draw_tries"), (training4, "draw_replies")],
    "rewards": [(training4, "judged")],
    "importance": [(search5, "measure_importance")],
    "reference": [(training3, "with_reference")],
    "backward": [(torch.Tensor, "backward")],
    "fingerprint": [(run_module, "weight_fingerprint")],
    "clipping": [(torch.nn.utils, "clip_grad_norm_")],
}
"""What a step does besides the forward pass of its loop, and the functions in which it does so."""


class Observer(TorchDispatchMode):
    """While it is entered, notes which operations run in which floating-point type, in which module, to what end."""

    def __init__(self):
        super().__init__()
        self.activities = [""]
        self.modules = [None]
        self.found = defaultdict(lambda: defaultdict(set))
        """activity -> dtype -> operations, each with the class of its module before it if it runs in one."""
        self.dtypes = defaultdict(set)
        """weights, gradients and moments: their types after each step; window, ssm, keys, values: those of states."""
        self.rounded = set()
        """Of these, which had only numbers that bfloat16 can hold."""
        self.last = {}
        """The weights and moments after the last step, by the number of the parameter."""

    def __enter__(self):
        self.patches = pytest.MonkeyPatch()
        for activity, places in ACTIVITIES.items():
            for owner, name in places:
                self.patches.setattr(owner, name, self.during(activity, getattr(owner, name)))
        self.hooks = [
            register_module_forward_pre_hook(self.enter_module),
            register_module_forward_hook(self.leave_module, always_call=True),
            register_optimizer_step_post_hook(self.after_step),
        ]
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()
        self.patches.undo()

    def during(self, activity, function):
        def noting(*arguments, **options):
            self.activities.append(activity)
            try:
                return function(*arguments, **options)
            finally:
                self.activities.pop()

        return noting

    def enter_module(self, module, inputs):
        self.modules.append(module)
        self.note_states(inputs)

    def leave_module(self, module, inputs, output):
        self.modules.pop()
        self.note_states(inputs)

    def note_states(self, inputs):
        for state in inputs:
            if isinstance(state, MambaState | AttentionState):
                for name, tensor in vars(state).items():
                    if tensor.is_floating_point():
                        self.dtypes[name].add(tensor.dtype)

    def after_step(self, optimizer, *ignored):
        with _disable_current_modes():
            named = defaultdict(list)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    named["weights"].append(parameter.detach())
                    named["gradients"].append(parameter.grad)
                    named["first moments"].append(optimizer.state[parameter]["exp_avg"])
                    named["second moments"].append(optimizer.state[parameter]["exp_avg_sq"])
            for name, tensors in named.items():
                self.dtypes[name] |= {tensor.dtype for tensor in tensors}
                if all((tensor == tensor.bfloat16()).all() for tensor in tensors):
                    self.rounded.add(name)
            self.last = {name: [tensor.clone() for tensor in tensors] for name, tensors in named.items()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) and result else result
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            name = func._schema.name.removeprefix("aten::")
            attention = re.fullmatch("_?scaled_dot_product_.*?(_backward)?", name)  # one kernel or another
            name = f"attention{attention[1] or ''}" if attention else IN_INFERENCE_MODE.get(name, name)
            module = self.modules[-1]
            self.found[self.activities[-1]][first.dtype].add(f"{type(module).__name__}.{name}" if module else name)
        return result

    def computed_in(self, dtype, activity):
        """The operations of an activity that compute, or round, numbers in a type."""
        return {name for name in self.found[activity][dtype] if name.rpartition(".")[2] not in MOVES}


IN_INFERENCE_MODE = {
    "linear": "mm", "matmul": "bmm", "square": "pow", "cross_entropy_loss": "_log_softmax", "to": "_to_copy",
}  # fmt: skip
"""There, operations are seen before torch takes them apart."""
MOVES = {
    "_unsafe_view", "alias", "cat", "clone", "constant_pad_nd", "detach", "expand", "flatten", "flip", "full",
    "gather", "index", "new_zeros", "permute", "scalar_tensor", "scatter_", "select", "slice", "split_with_sizes",
    "squeeze", "stack", "t", "transpose", "unflatten", "unsqueeze", "view", "where",
}  # fmt: skip
"""Operations whose results are numbers that were there before, in the same type; _to_copy rounds to another type."""
PRODUCTS = {"Linear._to_copy", "Linear.mm", "SquaredReluMLP.relu", "SquaredReluMLP.mul", "Attention.attention"}
"""All that bfloat16 is for: matrix products, and what lies between the two of the MLP."""
KEPT_KEYS = {"Attention._to_copy"}
"""Where replies go on from a prompt that is read once, keys and values are float32, and attention rounds them."""
IN_FLOAT32 = {
    "Embedding.embedding",
    "Layer.add",  # the residual stream
    *(f"RMSNorm.{name}" for name in ("pow", "mean", "rsqrt", "mul")),
    "CausalConv.addcmul",
    *(
        f"Mamba2Mixer.{name}" for name in ("softplus", "silu", "exp", "cumsum", "bmm", "mul", "addcmul")
    ),  # silu: the gate
}


def trained_by(step, settings, directory, dtypes=("bfloat16",), **inputs):
    """dtype -> what the step trained; "observed" -> what was seen while bfloat16 trained."""
    runs = {}
    for dtype in dtypes:
        config = step.Config(**settings, **inputs, dtype=dtype, output_dir=directory / dtype)
        with Observer() if dtype == "bfloat16" else nullcontext() as observer:
            runs[dtype] = step.main(config)
    return runs | {"observed": observer}


ALL_TYPES = ("float64", "float32", "bfloat16")


@pytest.fixture(scope="module")
def pretraining(pretraining_data, tmp_path_factory):
    """Stage 0."""
    directory = tmp_path_factory.mktemp("pretraining")
    return trained_by(training0, PRETRAINING, directory, ALL_TYPES, dataset_path=pretraining_data.path)


@pytest.fixture(scope="module")
def conversations(pretraining, tmp_path_factory):
    """A Dataset of stage 1, on the base model that was trained in bfloat16."""
    output = tmp_path_factory.mktemp("curated") / "data_curation"
    base = pretraining["bfloat16"].path
    return data1.main(data1.Config(**FEW_CONVERSATIONS, base_checkpoint_path=base, output_dir=output))


@pytest.fixture(scope="module")
def fine_tuning(conversations, tmp_path_factory):
    """Stage 1."""
    directory = tmp_path_factory.mktemp("fine_tuning")
    return trained_by(training1, FINE_TUNING, directory, ALL_TYPES, dataset_path=conversations.path)


@pytest.fixture(scope="module")
def reinforcement(fine_tuning, tmp_path_factory):
    """Stage 2, on the model that was fine-tuned in bfloat16."""
    directory = tmp_path_factory.mktemp("reinforcement")
    base, output = fine_tuning["bfloat16"].path, directory / "data_curation"
    prompts = data2.main(data2.Config(**FEW_PROMPTS, base_checkpoint_path=base, output_dir=output))
    return trained_by(training2, REINFORCEMENT, directory, ALL_TYPES, dataset_path=prompts.path)


@pytest.fixture(scope="module")
def preferences(reinforcement, tmp_path_factory):
    """Stage 3, on the model that was reinforced in bfloat16."""
    directory = tmp_path_factory.mktemp("preferences")
    base, output = reinforcement["bfloat16"].path, directory / "data_curation"
    tasks = data3.main(data3.Config(**FEW_TASKS, base_checkpoint_path=base, output_dir=output))
    return trained_by(training3, PREFERENCES, directory, dataset_path=tasks.path)


def ends_soon(model):
    """Random weights that end most replies within a few tokens: others are judged as the empty one."""
    with torch.no_grad():
        model.backbone.embeddings.weight[:, 0] = 3.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[CHAT.stop_ids[-1], 0] = 2.0


@pytest.fixture(scope="module")
def rewarding(random_base_model, tmp_path_factory):
    """The reward model of stage 4, on random weights."""
    directory = tmp_path_factory.mktemp("rewarding")
    base, output = tmp_path_factory.mktemp("base"), directory / "data_curation"
    random_base_model(base, CHAT.template, ends_soon)
    pairs = data4.main(data4.Config(**FEW_PAIRS, base_checkpoint_path=base, output_dir=output))
    return trained_by(reward_model4, REWARDING, directory, dataset_path=pairs.path)


@pytest.fixture(scope="module")
def feedback(rewarding, tmp_path_factory):
    """The policy of stage 4."""
    directory = tmp_path_factory.mktemp("feedback")
    return trained_by(training4, FEEDBACK, directory, rewardmodel_path=rewarding["bfloat16"].path)


@pytest.fixture(scope="module")
def search(fine_tuning, tmp_path_factory):
    """The search of stage 5, which distills a candidate for a while, out of the model that was fine-tuned."""
    directory = tmp_path_factory.mktemp("search")
    base, output = fine_tuning["bfloat16"].path, directory / "data_curation"
    rows = data5.main(data5.Config(**FEW_ROWS, base_checkpoint_path=base, output_dir=output))
    return trained_by(search5, GRID, directory, dataset_path=rows.path)


@pytest.fixture(scope="module")
def distillation(search, tmp_path_factory):
    """Stage 5."""
    directory = tmp_path_factory.mktemp("distillation")
    return trained_by(training5, DISTILLATION, directory, checkpoint_path=search["bfloat16"].path)


@pytest.fixture(scope="module")
def control(distillation, tmp_path_factory):
    """The control of stage 5."""
    directory = tmp_path_factory.mktemp("control")
    return trained_by(control5, DISTILLATION, directory, checkpoint_path=distillation["bfloat16"].path)


LEAVE_A_STATE = (
    "pretraining", "fine_tuning", "reinforcement", "preferences", "rewarding", "feedback", "distillation", "control",
)  # fmt: skip
TRAININGS = (*LEAVE_A_STATE, "search")
OBJECTIVE = {"add", "div", "masked_fill_", "mul", "neg", "ones_like"}
PAIRS = {"div", "log_sigmoid_backward", "mul", "neg", "ones_like"}
FLOAT64_GRADIENTS = {"reinforcement": OBJECTIVE, "feedback": OBJECTIVE, "preferences": PAIRS}
"""What is computed in float64 in the backward pass: of the objective of stages 2 and 4, whose advantages are float64,
and of the objective of stage 3, whose reference is."""
CROSS_ENTROPY = {"_log_softmax", "nll_loss_forward"}, {"_log_softmax_backward_data", "nll_loss_backward"}
BRADLEY_TERRY = {"log_sigmoid_forward", "mm"}, {"log_sigmoid_backward"}  # mm: the head, whose scores are float32
DIVERGENCE = {"_log_softmax", "exp", "sub"}, {"mul"}  # its gradient is computed in the forward pass
LOSSES = {"rewarding": BRADLEY_TERRY, "distillation": DIVERGENCE, "search": DIVERGENCE}
"""What is computed in float32 of a loss that is not the cross-entropy: in the forward and in the backward pass."""
PRODUCTS_OF = {
    "reinforcement": PRODUCTS | KEPT_KEYS,
    "feedback": PRODUCTS | KEPT_KEYS,
    "distillation": PRODUCTS | {"_to_copy", "mm"},
    "search": PRODUCTS | {"_to_copy", "mm"},
}
"""What else is computed in bfloat16 in the forward pass: the divergence multiplies the output matrices itself."""


@pytest.fixture(params=TRAININGS)
def trained(request):
    """What one step trained."""
    return request.getfixturevalue(request.param) | {"step": request.param}


@pytest.fixture(params=["pretraining", "fine_tuning"])
def trained_on_text(request):
    """The same of the stages that learn from texts, in every type."""
    return request.getfixturevalue(request.param)


def names_of_modules(operations):
    """The operations that run in a module of the model."""
    return {name for name in operations if "." in name}


def assert_float32(observed, activity=""):
    """Weights, states and all that the model computes are float32, as those that bfloat16 trained."""
    assert observed.computed_in(torch.bfloat16, activity) == set()
    assert names_of_modules(observed.computed_in(torch.float64, activity)) == set()  # draws are float64
    assert observed.computed_in(torch.float32, activity) >= IN_FLOAT32 | PRODUCTS - {"Linear._to_copy"}


def test_training_in_bfloat16_computes_only_matrix_products_in_it(trained):
    observed, step = trained["observed"], trained["step"]
    assert observed.computed_in(torch.bfloat16, "") == PRODUCTS_OF.get(step, PRODUCTS)
    assert observed.computed_in(torch.float32, "") >= IN_FLOAT32 | LOSSES.get(step, CROSS_ENTROPY)[0]
    assert names_of_modules(observed.computed_in(torch.float64, "")) == set()


def test_gradients_are_bfloat16_only_where_they_pass_a_matrix_product(trained):
    observed, step = trained["observed"], trained["step"]
    products = {"mm", "attention_backward", "mul", "threshold_backward", "add", "_to_copy"}  # add: of relu and relu
    assert observed.computed_in(torch.bfloat16, "backward") == products
    in_float32 = LOSSES.get(step, CROSS_ENTROPY)[1] | {"silu_backward", "softplus_backward", "cumsum"}
    assert observed.computed_in(torch.float32, "backward") >= in_float32 | {"embedding_dense_backward", "bmm", "pow"}
    assert observed.computed_in(torch.float64, "backward") == FLOAT64_GRADIENTS.get(step, set())
    assert observed.computed_in(torch.bfloat16, "clipping") == set()
    assert observed.computed_in(torch.float32, "clipping") >= {"linalg_vector_norm", "mul"}


def test_weights_gradients_and_moments_are_float32_and_use_its_digits(trained):
    observed = trained["observed"]
    kept = ("weights", "gradients", "first moments", "second moments")
    assert {name: observed.dtypes[name] for name in kept} == {name: {torch.float32} for name in kept}
    assert observed.rounded == set()


@pytest.mark.parametrize("step", ["pretraining", "fine_tuning", "rewarding", "search", "distillation"])
def test_validation_computes_as_training_does(step, request):
    observed = request.getfixturevalue(step)["observed"]
    assert observed.computed_in(torch.bfloat16, "validation") == PRODUCTS_OF.get(step, PRODUCTS)
    in_float32 = {"mm"} if step == "rewarding" else {"_log_softmax"}
    assert observed.computed_in(torch.float32, "validation") >= IN_FLOAT32 | in_float32
    assert names_of_modules(observed.computed_in(torch.float64, "validation")) == set()


def test_the_sample_is_written_in_the_precision_of_the_weights(pretraining):
    assert_float32(pretraining["observed"], "sample")


@pytest.mark.parametrize("step", LEAVE_A_STATE)
def test_what_is_saved_is_every_bit_of_the_last_step(step, request):
    """Weights and moments, in the model and in the state to resume from; "last" was seen in the optimizer."""
    trained = request.getfixturevalue(step)
    checkpoint, last = trained["bfloat16"], trained["observed"].last
    num_updates = checkpoint.producer["config"].get("updates_per_step", 1)
    (state,) = checkpoint.training_state_path.iterdir()
    moments = load_tensors(state / "optimizer.safetensors")
    for number in range(len(last["weights"])):
        assert torch.equal(moments[f"{number}.exp_avg"], last["first moments"][number])
        assert torch.equal(moments[f"{number}.exp_avg_sq"], last["second moments"][number])
        assert moments[f"{number}.step"] == checkpoint.num_steps * num_updates
    scores = step == "rewarding"
    directory = checkpoint.reward_model_path if scores else checkpoint.checkpoint_path
    model, tensors = (load_scorer if scores else load_checkpoint)(directory), load_tensors(directory / WEIGHTS)
    if scores:  # its head is beside the output matrix of the language model
        tensors["lm_head.weight"] = load_tensors(directory / HEAD_FILE)[HEAD]
    for found in (load_tensors(state / WEIGHTS), tensors):
        model.load_state_dict(found, assign=True)
        groups = parameter_groups(model, weight_decay=0.1)
        saved = [parameter for group in groups for parameter in group["params"]]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(saved, last["weights"], strict=True))


@pytest.mark.parametrize("curve", ["curve_path", "validation_curve_path"])
def test_the_loss_in_bfloat16_is_neither_that_of_float32_nor_far_from_it(trained_on_text, curve):
    """Measured: float32 within 3e-7 of float64; bfloat16 within 1.2e-3, and half of the losses beyond 8e-5."""
    losses = {dtype: pq.read_table(getattr(trained_on_text[dtype], curve))["loss"].to_numpy() for dtype in ALL_TYPES}
    single, half = (np.abs(losses[dtype] / losses["float64"] - 1) for dtype in ("float32", "bfloat16"))
    assert single.max() < 3e-6
    assert np.median(half) > 1e-5
    assert half.max() < 1e-2


def test_pretraining_is_evaluated_in_the_precision_of_its_weights(pretraining, tmp_path):
    config = evaluation0.Config(checkpoint_path=pretraining["bfloat16"].path, output_dir=tmp_path / "evaluation")
    with Observer() as observed:
        evaluation0.main(config)
    assert_float32(observed)
    assert "_log_softmax" in observed.computed_in(torch.float32, "")


def test_fine_tuning_is_evaluated_in_the_precision_of_its_weights(fine_tuning, tmp_path):
    config = evaluation1.Config(
        max_new_tokens=3, checkpoint_path=fine_tuning["bfloat16"].path, output_dir=tmp_path / "evaluation"
    )
    with Observer() as observed:
        evaluation1.main(config)
    assert_float32(observed)
    assert observed.dtypes == {name: {torch.float32} for name in ("window", "ssm", "keys", "values")}


@pytest.mark.parametrize("step", ["reinforcement", "preferences", "feedback"])
def test_rollouts_are_drawn_in_the_precision_of_the_weights(step, request):
    """So the states hold float32 too; only the learner rounds to bfloat16."""
    observed = request.getfixturevalue(step)["observed"]
    assert_float32(observed, "rollouts")
    assert {name: observed.dtypes[name] for name in ("window", "ssm", "keys", "values")} == {
        name: {torch.float32} for name in ("window", "ssm", "keys", "values")
    }


def test_rewards_are_scored_in_the_precision_of_the_weights(feedback):
    assert_float32(feedback["observed"], "rewards")
    assert "mm" in feedback["observed"].computed_in(torch.float32, "rewards")  # the head


def test_importance_is_measured_in_the_precision_of_the_weights(search):
    observed = search["observed"]
    assert observed.computed_in(torch.bfloat16, "importance") == set()
    assert observed.computed_in(torch.float32, "importance") >= IN_FLOAT32 | PRODUCTS - {"Linear._to_copy"}


def test_the_reference_is_computed_as_the_learner_computes(preferences):
    """Otherwise the first step of a round would find a difference that is none."""
    observed = preferences["observed"]
    assert observed.computed_in(torch.bfloat16, "reference") == PRODUCTS
    assert observed.computed_in(torch.float32, "reference") >= IN_FLOAT32 | {"_log_softmax", "nll_loss_forward"}
    assert names_of_modules(observed.computed_in(torch.float64, "reference")) == set()


def test_preferences_are_evaluated_in_the_precision_of_their_weights(preferences, tmp_path):
    config = evaluation3.Config(
        max_new_tokens=3, checkpoint_path=preferences["bfloat16"].path, output_dir=tmp_path / "evaluation"
    )
    with Observer() as observed:
        evaluation3.main(config)
    assert_float32(observed)


def test_the_learner_differs_from_the_sampler_by_its_precision(reinforcement):
    """Its log-probabilities of the same tokens: within 1e-10 in float64; what bfloat16 rounds is measured, too."""
    differences = {
        dtype: pq.read_table(reinforcement[dtype].curve_path)["sampler_difference"].to_numpy() for dtype in ALL_TYPES
    }
    assert differences["float64"].max() < 1e-10
    assert 1e-10 < differences["float32"].max() < 1e-4
    assert 1e-4 < differences["bfloat16"].max() < 0.3


def test_reinforcement_is_evaluated_in_the_precision_of_its_weights(reinforcement, tmp_path):
    config = evaluation2.Config(
        max_new_tokens=3, checkpoint_path=reinforcement["bfloat16"].path, output_dir=tmp_path / "evaluation"
    )
    with Observer() as observed:
        evaluation2.main(config)
    assert_float32(observed)
    assert observed.dtypes == {name: {torch.float32} for name in ("window", "ssm", "keys", "values")}


class Stopped(Exception):
    pass


def test_a_stopped_run_in_bfloat16_resumes_to_the_same_bits(pretraining_data, pretraining, tmp_path, monkeypatch):
    """So the states hold float32, whose last digits every product would show."""
    config = training0.Config(
        **PRETRAINING, dtype="bfloat16", dataset_path=pretraining_data.path, output_dir=tmp_path / "training"
    )
    real = Run.check_finite

    def stop(run, **numbers):
        if run.step == 8:
            raise Stopped
        real(run, **numbers)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "check_finite", stop)
        with pytest.raises(Stopped):
            training0.main(config)
    assert training0.main(replace(config, resume=True)).digest == pretraining["bfloat16"].digest
