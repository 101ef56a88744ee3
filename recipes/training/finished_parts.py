"""Parts of a step that were finished before it was killed, so that the next run need not compute them again.

In: what a part found, as JSON. Out: the same values in the next run, bit for bit: JSON keeps every float.

    parts = FinishedParts(work, identity_of(config, dataset), resume=config.resume, flag=flag_of(config, "resume"))
    for name in names:
        found = parts.get(name)
        if found is None:
            found = parts.add(name, measure(name))
    parts.delete()  # before the artifact is saved

A part is used again if dataset, config and code are those that made it; with `resume`, whatever the code is now. Each
is a file in <work>/finished_parts with its sha256, flushed to disk before it gets its name. A damaged one is reported,
and its part is computed again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron.directory import PARTIAL_METADATA, file_record, sync_directory
from nemotron.recipes.training.state import Identity
from nemotron.strict import parse_json_object, short
from nemotron.terminal import print_line

FOLDER = "finished_parts"


class FinishedParts:
    """The finished parts of a step that is running.

    Args:
        work: the working directory, which is kept on failure; all but the parts is deleted from it.
        identity: of this run.
        resume: use the parts of a run whose code was another.
        flag: sets `resume` in the command that was typed.
    Raises:
        ValueError: with `resume`, if the parts are of a run with another dataset or config.
    """

    def __init__(self, work: Path, identity: Identity, *, resume: bool, flag: str) -> None:
        self.folder, self.identity = work / FOLDER, identity
        for entry in sorted(work.iterdir()):
            if entry.name not in (FOLDER, PARTIAL_METADATA):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self.folder.mkdir(exist_ok=True)
        self.found: dict[str, Any] = {}
        for file in sorted(self.folder.iterdir()):
            if file.suffix != ".json":  # the run was killed while it wrote this one
                file.unlink()
                continue
            try:
                part = read_part(file)
            except ValueError as error:
                print_line(f"warning: {error}; that part is computed again")
                continue
            change = changed(part["identity"], identity)
            if change and resume:
                raise ValueError(f"{work} was begun with {change}; use the same, or drop {flag} to start over")
            if change:  # of no use to this run, and in the way of a later one with `resume`
                file.unlink()
            elif not resume and part["identity"]["code"] != identity["code"]:
                change = f"other code, and {flag} is not given"
            if change:
                print_line(f"{part['name']} is computed again: it was begun with {change}")
            else:
                self.found[part["name"]] = part["value"]

    def get(self, name: str) -> Any:
        """What a part found in an earlier run; None if it has to be computed."""
        if name in self.found:
            print_line(f"{name} was finished before, and is not computed again")
        return self.found.get(name)

    def add(self, name: str, value: Any) -> Any:
        """Keep what a part found, and return it."""
        content = json.dumps({"name": name, "identity": self.identity, "value": value}, allow_nan=False)
        file = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        partial = file.with_suffix(".partial")
        partial.write_text(f"{content_digest(content)}\n{content}\n", encoding="ascii", newline="\n")
        file_record(partial, sync=True)
        os.replace(partial, file)
        for folder in (self.folder, self.folder.parent):
            sync_directory(folder)
        return value

    def delete(self) -> None:
        """Forget all: the step has used them, and its artifact must not contain them."""
        shutil.rmtree(self.folder)


def content_digest(content: str) -> str:
    """sha256 of a part, in hexadecimal."""
    return hashlib.sha256(content.encode()).hexdigest()


def read_part(file: Path) -> dict[str, Any]:
    """The content of a part's file.

    Raises:
        ValueError: if it is not what was written.
    """
    digest, _, content = file.read_bytes().decode("ascii", errors="replace").removesuffix("\n").partition("\n")
    if digest != content_digest(content):
        raise ValueError(f"{file} is damaged")
    return parse_json_object(content.encode(), str(file))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what dataset or config differ, as it was before; empty if they do not."""
    if before["dataset"] != now["dataset"]:
        return f"a dataset with digest {short(before['dataset'][:12])}, not {now['dataset'][:12]}"
    for name in {**before["config"], **now["config"]}:
        was, value = before["config"].get(name), now["config"].get(name)
        if was != value:
            return f"{name}={short(was)}, not {short(value)}"
    return ""
