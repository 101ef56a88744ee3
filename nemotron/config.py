"""A step's Config: one documented line for each number, with its values at the four scales and where they come from.

    @dataclass
    class Config(ScaledConfig):
        learning_rate: PositiveFloat = by_scale(tiny=4e-3, small=2e-3, medium=1e-3, full=published(4.5e-4))
        '''Peak learning rate.'''

`Config(scale="small")` has the numbers of small, and `--scale small --help` shows them. Bounds are part of the types;
they are checked on the command line, in Python, by `dataclasses.replace` and on assignment. A Config with the name of
one scale and the numbers of another is refused.

Run: python -m nemotron.recipes.nano2.stage0_pretrain.training --scale full --help
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_origin

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from nemotron.command_line import checked_arguments, parse_arguments
from nemotron.lineage import set_lineage_tracker
from nemotron.process import launched
from nemotron.scale import SCALES, Scale
from nemotron.strict import one_sentence
from nemotron.terminal import check_utf8, print_line, silent
from nemotron.trackers import MlflowTracker, WandbTracker

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""
BelowOne = Annotated[float, Field(ge=0, lt=1)]
"""A number from 0 up to, but not including, 1."""
Dtype = Literal["float64", "float32", "bfloat16"]
"""Arithmetic of a model. bfloat16 keeps the weights in float32 and computes matrix products in bfloat16."""

TrackerName = Literal["none", "wandb", "mlflow"]
TRACKER_HELP = """Send curves, artifacts and plots to Weights & Biases, or to MLflow. Results do not depend on it."""
OUR_CHOICE = "our choice"
OWNED = ("scale", "seed", "output_dir")
"""Fields that an orchestrator, the `__main__` of a stage or recipe, hands down to the Configs of its steps."""

AnyConfig = TypeVar("AnyConfig", bound="ScaledConfig")


@dataclass(frozen=True)
class Marked:
    """A number with its origin."""

    value: Any
    origin: str
    is_explicit: bool = True
    """False if the number was written without a mark."""


def published(value: Any, where: str = "") -> Marked:
    """A number that the model's paper, card or configuration gives; `where` names the place."""
    return Marked(value, f"published, {where}" if where else "published")


def proxy(value: Any, model: str) -> Marked:
    """A number of another model, used because the model's own is not known to us."""
    return Marked(value, f"proxy: {model}")


def our_choice(value: Any, why: str = "") -> Marked:
    """A number that nobody published for this model; without the mark, a reader cannot tell it from a forgotten one."""
    return Marked(value, f"{OUR_CHOICE}: {why}" if why else OUR_CHOICE)


def same_as(value: Any, stage: str) -> Marked:
    """A number that is unknown to us for this stage, and taken over from an earlier stage of the recipe."""
    return Marked(value, f"our choice, as in {stage}")


def marked_field(values: dict[Scale, Any], **metadata: Any) -> Any:
    """A dataclass field with these values, of which some are `Marked`; the others are our choice."""
    marked = {
        scale: value if isinstance(value, Marked) else Marked(value, OUR_CHOICE, is_explicit=False)
        for scale, value in values.items()
    }
    return field(default=marked["tiny"].value, metadata={"by_scale": marked, **metadata})


def by_scale(*, tiny: Any, small: Any, medium: Any, full: Any, recorded: bool = True) -> Any:
    """A field of a Config with a default for each scale; an unmarked value is our choice.

    At full, the published run, every value has a mark: `published`, `proxy`, `same_as` or `our_choice`.

    Args:
        recorded: False for a field that changes where, when or how fast a step works, and not its result: it is neither
            in the ladder nor compared when a run is resumed.
    """
    return marked_field({"tiny": tiny, "small": small, "medium": medium, "full": full}, recorded=recorded)


def at_every_scale(value: Any, *, recorded: bool = True) -> Any:
    """A field of a Config with one default for all scales; `recorded` as in `by_scale`."""
    return marked_field(dict.fromkeys(SCALES, value), recorded=recorded)


def output_below(*parts: str) -> Any:
    """The field `output_dir`: outputs/<recipe>/<scale>/<the other parts>, so that scales do not overwrite each other.

    Args:
        parts: the recipe's name, then the folders below the scale, as in ("nano2", "stage0_pretrain", "training").
    """
    recipe, *folders = parts
    paths = {scale: Marked(Path("outputs", recipe, scale, *folders), "") for scale in SCALES}
    return marked_field({**paths}, recorded=False)


def input_path(*default_below: str) -> Any:
    """A field with the directory of an artifact that the step reads; not a flag of an orchestrator, which sets it.

    Args:
        default_below: where an earlier stage writes the artifact, as in `output_below`. If left out, the default is
            None: read it from the pipe.
    """
    if not default_below:
        return field(default=None, metadata={"input": True, "recorded": False})
    found = output_below(*default_below)
    return field(default=found.default, metadata={**found.metadata, "input": True})


def switch(*, of_whole_run: bool = False) -> Any:
    """A field that is False, and changes how a command runs and not its result: --resume.

    Args:
        of_whole_run: only the outermost Config has the flag, as --plan.
    """
    return field(default=False, metadata={"recorded": False, "of_whole_run": of_whole_run})


def only_if_given(default: Any) -> Any:
    """A field that adds to a step's result if it is set, and is only then recorded."""
    return field(default=default, metadata={"only_if_given": True})


def nested(config_class: type[AnyConfig], folder: str) -> Any:
    """A field of an orchestrator's Config: the Config of a step or stage, which inherits the fields in OWNED.

    Args:
        folder: where it writes, below the orchestrator's `output_dir`.
    """
    return field(default_factory=config_class, metadata={"nested": config_class, "folder": folder})


def handed_down(outer: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The values that a nested Config inherits from the outer one."""
    return {"scale": outer["scale"], "seed": outer["seed"], "output_dir": Path(outer["output_dir"]) / folder}


class _ConfigMeta(type):
    """Reports a mistake in the arguments of a Config in one sentence."""

    def __call__(cls, *args: Any, **given: Any) -> Any:
        if "__pydantic_fields__" not in vars(cls):
            raise TypeError(f"decorate {cls.__module__}.{cls.__name__} with pydantic.dataclasses.dataclass")
        hidden = {item.name: bool(item.metadata.get("hidden")) for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        names = [name for name in hidden if not hidden[name]]
        twice = sorted(set(names[: len(args)]) & given.keys())
        unknown = sorted(given.keys() - hidden.keys())
        if twice:
            raise ValueError(f"{cls.__name__}: {twice[0]} is given twice; use keywords")
        if len(args) > len(names):
            raise ValueError(f"{cls.__name__}: {len(args)} values for {len(names)} fields; use keywords")
        if unknown:
            raise ValueError(
                f"{cls.__module__}.{cls.__name__} has no field {unknown[0]}; its fields are {', '.join(names)}"
            )
        try:
            return super().__call__(**dict(zip(names, args, strict=False)), **given)
        except ValidationError as error:
            raise ValueError(one_sentence(error).removeprefix(f"{cls.__name__}: ")) from None


@checked_dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True))
class ScaledConfig(metaclass=_ConfigMeta):
    """Base of every Config. Subclasses are pydantic dataclasses and override `check` for rules across fields."""

    scale: Scale = "tiny"
    """Sizes of everything: tiny (seconds), small (minutes), medium (one GPU), full (the published run). Tiny if left
    out."""
    seed: int = 1234
    """Seed of everything that is drawn."""
    numbers_of: str = field(default="tiny", repr=False, kw_only=True, metadata={"hidden": True, "recorded": False})
    """Scale whose numbers filled this Config; set automatically, to catch `replace(config, scale=...)`. Not a flag."""
    flag_prefix: str = field(
        default="", repr=False, kw_only=True, compare=False, metadata={"hidden": True, "recorded": False}
    )
    """What comes before the fields of this Config in the flags of the command, as "train."; empty in a step's own
    command. Set automatically. Not a flag."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """The values with the numbers of their scale, and nested Configs, where they were left out."""
        given = dict(getattr(values, "kwargs", values) or {})  # pydantic gives arguments as an object, or a dict
        scale = given.setdefault("scale", "tiny")
        if scale not in SCALES:
            raise ValueError(f"scale={scale!r} is unknown; use {', '.join(SCALES)}")
        given.setdefault("numbers_of", scale)
        fields = dataclasses.fields(cls)
        for item in fields:
            if "by_scale" in item.metadata:
                given.setdefault(item.name, item.metadata["by_scale"][scale].value)
        outer = {**{item.name: item.default for item in fields}, **given}
        for item in fields:
            if "nested" in item.metadata and "output_dir" not in outer:
                raise ValueError(f"{cls.__name__} needs a field output_dir, because it has a nested Config")
            if "nested" in item.metadata and item.name not in given:
                prefix = f"{outer['flag_prefix']}{item.name}."
                inherited = handed_down(outer, item.metadata["folder"])
                given[item.name] = item.metadata["nested"](**inherited, flag_prefix=prefix)
        return given

    @model_validator(mode="after")
    def _check_all(self) -> "ScaledConfig":
        if self.numbers_of != self.scale:
            raise ValueError(
                f"scale={self.scale} with the numbers of {self.numbers_of}; make a new Config(scale={self.scale!r}) of "
                f"{type(self).__module__} instead of changing the scale of one"
            )
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str | Path):  # checked now, for paths are recorded in JSON after all work is done
                    check_utf8(text.absolute() if isinstance(text, Path) else text, item.name)
            if "nested" in item.metadata:
                self._check_nested(item)
        self.check()
        return self

    def check(self) -> None:
        """Raise ValueError if fields contradict each other. It may not assign to them."""

    def check_left_out(self, *names: str, when: object, because: str) -> None:
        """Raise ValueError if one of these fields is not at its default when it would change nothing.

        Args:
            when: true if they change nothing; `because` is the end of "noise_share=0.2 has no effect ...".
        """
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if when and item.name in names and value != default_of(item, self.scale):
                raise ValueError(f"{item.name}={value!r} has no effect {because}; leave it out")

    def _check_nested(self, item: dataclasses.Field[Any]) -> None:
        """Raise ValueError if a nested Config lacks the scale, seed or directory handed down, or sets an input."""
        inner = getattr(self, item.name)
        for owned, value in handed_down(vars(self), item.metadata["folder"]).items():
            if getattr(inner, owned) != value:
                raise ValueError(
                    f"{item.name}.{owned}={getattr(inner, owned)} differs from {value} of the whole run; set it on "
                    f"the outer Config when it is made, and other fields of {item.name} afterwards"
                )
        for given in dataclasses.fields(inner):
            if given.metadata.get("input") and getattr(inner, given.name) != default_of(given, self.scale):
                raise ValueError(
                    f"{item.name}.{given.name}={getattr(inner, given.name)} is set by the step before it in a whole "
                    f"run; run that step by itself to give your own"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign to a field after checking the whole Config with the new value."""
        if name in self.__dict__:
            value = getattr(dataclasses.replace(self, **{name: value}), name)
        elif name not in {item.name for item in dataclasses.fields(self)}:
            raise ValueError(f"{type(self).__module__}.{type(self).__name__} has no field {name}")
        object.__setattr__(self, name, value)


def default_of(item: dataclasses.Field[Any], scale: Scale) -> Any:
    """The value of a field that is left out."""
    return item.metadata["by_scale"][scale].value if "by_scale" in item.metadata else item.default


def flag_of(config: Any, name: str) -> str:
    """The flag of a Config's field in the command that was typed, as --train.resume; a sentence names it."""
    return f"--{getattr(config, 'flag_prefix', '')}{name}".replace("_", "-")


def recorded_values(config: Any) -> dict[str, Any]:
    """The fields of a Config that its step's result depends on: no paths, no field with recorded=False, and none
    with `only_if_given` that is at its default."""
    fields = [
        item
        for item in dataclasses.fields(config)
        if item.metadata.get("recorded", True)
        and not (item.metadata.get("only_if_given") and getattr(config, item.name) == item.default)
    ]
    return {
        item.name: getattr(config, item.name) for item in fields if not isinstance(getattr(config, item.name), Path)
    }


def origin_of(config_class: type[ScaledConfig], name: str, scale: Scale) -> str:
    """Where the default of a field at a scale comes from; empty for a field that has no such number."""
    (found,) = (item for item in dataclasses.fields(config_class) if item.name == name)
    return found.metadata["by_scale"][scale].origin if "by_scale" in found.metadata else ""


def unmarked_numbers(config_class: type[ScaledConfig], scale: Scale = "full") -> list[str]:
    """The fields whose value at this scale was written without a mark, so that it may be a forgotten one."""
    fields = [item for item in dataclasses.fields(config_class) if "by_scale" in item.metadata]
    return [item.name for item in fields if not item.metadata["by_scale"][scale].is_explicit]


def parse_command_line(config_class: type[AnyConfig], args: Sequence[str] | None = None) -> AnyConfig:
    """The Config that the command line asks for; flags, defaults and `--help` are those of the scale it names.

    A flag with several values takes them all at once, as in `--sources a b`; no flag may be given twice. `--help` of a
    recipe fits on one screen: it names the stages, whose own `--help` shows their flags. `--tracker` is a flag of every
    program and in no Config: it calls `set_lineage_tracker`.

    Of several processes that torchrun has started, only the first one prints and has a tracker.

    Args:
        args: without the name of the program; the command line of this process if left out.
    Raises:
        SystemExit: after `--help`, or with code 2 after a mistake was explained on stderr.
    """
    rank, _ = launched()
    with silent() if rank > 0 else nullcontext():
        config, tracker = _parsed(config_class, args)
    if tracker != "none" and rank == 0:
        try:
            set_lineage_tracker(WandbTracker() if tracker == "wandb" else MlflowTracker())
        except ValueError as error:
            print_line(f"error: {error}")
            raise SystemExit(2) from None
    return config


def _parsed(config_class: type[AnyConfig], args: Sequence[str] | None) -> tuple[AnyConfig, TrackerName]:
    """The Config, and the value of --tracker."""
    import tyro  # half of the time that it takes to import this package

    args = checked_arguments(args, several=[*_flags_of_several(config_class)])
    try:
        default = config_class(**_owned_flags(args))
    except ValueError as error:  # tyro explains mistakes in the flags; this one is in the current directory
        print_line(f"error: {one_sentence(error)}")
        raise SystemExit(2) from None
    registry = tyro.constructors.ConstructorRegistry()
    stages = _stages_of(config_class)
    description, is_short = config_class.__doc__ or "", bool(stages) and not {"-h", "--help"}.isdisjoint(args)
    if is_short:
        listed = "; ".join(f"--{name.replace('_', '-')}.* in {module}" for name, module in stages.items())
        description += f" Flags of the stages are accepted too; --help of a stage lists them: {listed}."
    trackers: list[TrackerName] = []

    @registry.struct_rule
    def rule(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
        if not (isinstance(info.type, type) and issubclass(info.type, ScaledConfig)):
            return None
        instance = info.default if isinstance(info.default, ScaledConfig) else info.type(scale=default.scale)
        return _flags(instance, is_nested=info.type is not config_class, trackers=trackers, is_short=is_short)

    config = parse_arguments(config_class, args, default=default, registry=registry, description=description)
    return config, trackers[-1]


def _stages_of(config_class: type[Any]) -> dict[str, str]:
    """For the Config of a recipe: field -> package of the stage. Empty for other Configs, whose help is one page."""
    inner = {
        item.name: item.metadata["nested"] for item in dataclasses.fields(config_class) if "nested" in item.metadata
    }
    orchestrators = {
        name: one for name, one in inner.items() if any("nested" in item.metadata for item in dataclasses.fields(one))
    }
    return {name: one.__module__.removesuffix(".__main__") for name, one in orchestrators.items()}


def _flags_of_several(config_class: type[Any], prefix: str = "--") -> Iterator[str]:
    """The flags of a Config, and of those nested in it, that take several values."""
    for item in dataclasses.fields(config_class):
        flag = prefix + item.name.replace("_", "-")
        if "nested" in item.metadata:
            yield from _flags_of_several(item.metadata["nested"], f"{flag}.")
        elif get_origin(item.type) is tuple:
            yield flag


def _owned_flags(args: Sequence[str] | None) -> dict[str, Any]:
    """The values on the command line for OWNED, on which other defaults depend; tyro explains mistakes in them."""
    found = {}
    for name, kind in (("scale", str), ("seed", int), ("output_dir", Path)):
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        early.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name, type=kind)
        try:
            value = vars(early.parse_known_args(args)[0])[name]
        except argparse.ArgumentError:
            value = None
        if value is not None and (name != "scale" or value in SCALES):
            found[name] = value
    return found


def _flags(instance: ScaledConfig, is_nested: bool, trackers: list[TrackerName], is_short: bool = False) -> Any:
    """The flags of a Config and how to make it from them, starting from `instance`.

    Args:
        trackers: gets the value of --tracker, which the outermost Config has beside its fields.
        is_short: leave the nested Configs out, for a help of one screen.
    """
    import tyro

    config_class = type(instance)
    specs = []
    for item in dataclasses.fields(instance):
        owned = item.name in OWNED or item.metadata.get("input") or item.metadata.get("of_whole_run")
        if item.metadata.get("hidden") or (is_nested and owned) or (is_short and "nested" in item.metadata):
            continue
        documented = [vars(base).get("__pydantic_fields__", {}).get(item.name) for base in config_class.__mro__]
        described = next((found for found in documented if found and found.description), documented[0])
        origin = origin_of(config_class, item.name, instance.scale)
        notes = [note for note in (_bounds(described.metadata), origin) if note]
        sentence = " ".join((described.description or "").split())
        helptext = f"{sentence} [{'; '.join(notes)}]" if notes else sentence
        annotation = described.annotation
        if described.metadata:
            annotation = Annotated[annotation, *described.metadata]
        specs.append(
            tyro.constructors.StructFieldSpec(item.name, annotation, getattr(instance, item.name), helptext=helptext)
        )

    if not is_nested:
        annotation = cast(Any, TrackerName)  # a type to tyro, not to mypy
        specs.append(tyro.constructors.StructFieldSpec("tracker", annotation, "none", helptext=TRACKER_HELP))

    def instantiate(**flags: Any) -> ScaledConfig:
        if not is_nested:
            trackers.append(flags.pop("tracker"))
        return dataclasses.replace(instance, **flags)

    return tyro.constructors.StructConstructorSpec(instantiate, tuple(specs))


def _bounds(constraints: Sequence[Any]) -> str:
    """The bounds of a field's type in signs, as "> 0" or ">= 0, < 1"."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [(signs[name], getattr(one, name)) for one in constraints for name in signs if hasattr(one, name)]
    return ", ".join(f"{sign} {bound}" for sign, bound in found if bound is not None)
