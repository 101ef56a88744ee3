"""The rungs of a training run, in the order in which they happen.

In: a run's config, inputs, model and record. Out: entries for its ladder.json, which the golden of a stage pins.
"""

from typing import Any

from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.training.state import Record


def training_ladder(
    config: dict[str, Any], inputs: dict[str, Any], model: NemotronH, record: Record
) -> list[dict[str, Any]]:
    """What a run must reproduce, in the order in which it happens: the first entry that differs names the cause.

    Args:
        config: the fields that the result depends on.
        inputs: what the run was given, by name.
    """
    ladder = [{"rung": "config", "name": name, "step": 0, "value": v} for name, v in config.items()]
    ladder += [{"rung": "inputs", "name": name, "step": 0, "value": value} for name, value in inputs.items()]
    ladder += [
        {"rung": "batch order", "name": "batch", "step": row["step"], "value": row["batch"]} for row in record.curve
    ]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    ladder.append({"rung": "parameters", "name": "num_parameters", "step": 0, "value": num_parameters})
    ladder += [
        {"rung": "initial weights", "name": name, "step": 0, "value": value}
        for name, value in record.weights["initial"].items()
    ]
    for name in ("learning_rate", "loss", "grad_norm"):
        ladder += [{"rung": name, "name": name, "step": row["step"], "value": row[name]} for row in record.curve[:1]]
    ladder += [
        {"rung": "weights after step 1", "name": name, "step": 1, "value": value}
        for name, value in record.weights["after step 1"].items()
    ]
    for row in record.curve:
        ladder += [
            {"rung": "curve", "name": name, "step": row["step"], "value": row[name]}
            for name in ("learning_rate", "loss", "grad_norm")
        ]
    ladder += [
        {"rung": "final weights", "name": name, "step": len(record.curve), "value": value}
        for name, value in record.weights["final"].items()
    ]
    ladder += [
        {"rung": "validation", "name": f"validation_loss/{row['category']}", "step": row["step"], "value": row["loss"]}
        for row in record.validation
    ]
    return ladder
