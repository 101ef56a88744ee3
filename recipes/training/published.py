"""A published model that a stage starts from: a directory in the layout of the Hugging Face Hub.

In: the directory, which no step wrote. Out: a `PublishedModel`, which a stage uses as it uses the Checkpoint of the
stage before: its weights, shape, tokenizer and chat template. It is known by the sha256 of its files
(nemotron/published.py), so a Dataset and a Checkpoint say which files they were made from.

    base = PublishedModel.load(Path("<directory of NVIDIA-Nemotron-Nano-9B-v2>"))

Left out: fetching one, for example with `hf download nvidia/NVIDIA-Nemotron-Nano-9B-v2 --local-dir <directory>`.
"""

from pathlib import Path
from typing import Self

from nemotron import Artifact, Scale
from nemotron.artifact import check_artifact
from nemotron.directory import METADATA
from nemotron.published import is_published, published_metadata
from nemotron.recipes.chat.tokenizer import read_tokenizer_config
from nemotron.recipes.nemotron_h.checkpoint import check_checkpoint, load_tokenizer, special_token_ids
from nemotron.recipes.nemotron_h.model import ModelConfig


class PublishedModel(Artifact):
    """A model that no step wrote."""

    @property
    def checkpoint_path(self) -> Path:
        """Its Hugging Face directory."""
        return self.path

    def check_scale(self, scale: Scale) -> None:
        """Accept every scale: the shape is that of the directory, and the scale says only how to train it."""

    @classmethod
    def _read(cls, path: Path) -> Self:
        """The model in the directory, after checks that read no weight, and the hash of every file.

        Raises:
            ValueError: if the directory is not a whole model of this architecture with its tokenizer, or is part of an
                artifact, which should be given instead.
        """
        path = path.resolve()
        if (path.parent / METADATA).is_file():
            check_artifact(path.parent, "checkpoint")
            raise ValueError(f"{path} is part of the Checkpoint {path.parent}; give that, so that its origin is known")
        check_model(path)
        return cls._from_metadata(path, published_metadata(path))


def check_model(directory: Path) -> ModelConfig:
    """The shape of the model in the directory, after checks that read no weight.

    Raises:
        ValueError: if the directory is not a whole model of this architecture with its tokenizer.
    """
    model, _ = check_checkpoint(directory)
    load_tokenizer(directory)
    read_tokenizer_config(directory)
    special_token_ids(directory)
    return model.config


def shape_of(directory: Path | None) -> ModelConfig | None:
    """The shape of the published model in the directory; None if there is none, so that the scale decides.

    Raises:
        ValueError: as `check_model`.
    """
    return check_model(directory) if directory is not None and is_published(directory) else None
