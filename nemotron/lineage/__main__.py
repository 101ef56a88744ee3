"""Where an artifact comes from: its tree, checked, and which raw documents, licenses and code made it.

In: the directory of an artifact. Out, on stdout: the tree of all that it was made from, as text, Mermaid or JSON.
Every file is hashed, every digest is compared. What is broken is named, and the exit code is 1:

    missing     an input is not where it was
    changed     a file, or metadata.json itself, is not what was written
    replaced    another artifact is in the place of an input
    circular    an artifact is among its own inputs

Left out: the inputs of a missing or changed artifact, which nobody can know.
Run: python -m nemotron.lineage outputs/nano2/tiny/stage0_pretrain/evaluation
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from nemotron.command_line import parse_arguments
from nemotron.directory import check_files
from nemotron.pipe import print_page, step_process
from nemotron.published import PUBLISHED, read_reference
from nemotron.strict import one_sentence
from nemotron.terminal import printable

MAX_TREE_DEPTH = 100  # our choice: artifacts of which each was made from the next


@dataclass
class Config:
    """Print what an artifact was made from, and check every digest on the way."""

    artifact: tyro.conf.Positional[Path]
    """Directory of the artifact."""
    mermaid: bool = False
    """Print a Mermaid graph, for Markdown."""
    json: bool = False
    """Print JSON."""


@dataclass
class Node:
    """An artifact in the tree."""

    name: str
    """The field of the artifact above that refers to it; empty at the top."""
    path: str
    type: str
    digest: str
    """As the artifact above recorded it."""
    broken: str = ""
    """What is wrong, beginning with missing, changed, replaced or circular; empty if nothing is."""
    repeated: bool = False
    """Whether its inputs are shown elsewhere in the tree."""
    step: str = ""
    created_at: str = ""
    code_version: str = ""
    code_digest: str = ""
    attribution: list[dict[str, Any]] = field(default_factory=list)
    """Of a Dataset: raw documents by origin and license."""
    sources: dict[str, str] = field(default_factory=dict)
    """The user's files that it was made from, with their sha256."""
    inputs: list["Node"] = field(default_factory=list)


def read_tree(path: Path) -> Node:
    """The tree of the artifact in a directory, with what is broken in it.

    Raises:
        ValueError: if there is no such directory.
    """
    path = path.resolve()
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory; name the directory of an artifact")
    return read_node(Node("", str(path), "", ""), (), {})


def read_node(node: Node, above: tuple[Path, ...], seen: dict[Path, str]) -> Node:
    """Fill in a node and those below it.

    Args:
        above: the artifacts between the top and this one.
        seen: those that are in the tree already, with their digests.
    """
    path = Path(node.path)
    if path in above or len(above) == MAX_TREE_DEPTH:
        node.broken = "circular: it is among its own inputs; run the steps again"
        return node
    if not path.exists():
        node.broken = "missing: nothing is there; put the artifact back, or run its step again"
        return node
    if path in seen:
        node.repeated = True
        if node.digest != seen[path]:
            node.broken = f"replaced: another {node.type} is there now, {seen[path][:12]}"
        return node
    try:
        metadata = read_reference(path)
        if metadata.type != PUBLISHED:  # whose files were just hashed
            check_files(path, metadata)
    except (ValueError, OSError) as error:
        node.broken = f"changed: {one_sentence(error)}"
        return node
    seen[path] = metadata.digest
    if node.digest and metadata.digest != node.digest:
        node.broken = f"replaced: another {metadata.type} is there now, {metadata.digest[:12]}"
    node.type, node.digest = metadata.type, node.digest or metadata.digest
    producer = metadata.producer
    node.step, node.created_at = str(producer.get("step", "")), metadata.created_at.isoformat()
    node.code_version, node.code_digest = (str(producer.get(name, "")) for name in ("code_version", "code_digest"))
    attribution = metadata.fields.get("attribution")
    node.attribution = [row for row in attribution if is_attribution(row)] if isinstance(attribution, list) else []
    node.sources = files_in(producer.get("sources"))
    if metadata.type == PUBLISHED:
        node.sources = {str(path / name): record.sha256 for name, record in metadata.files.items()}
        node.created_at = ""
    for name, reference in metadata.inputs.items():
        place = (path / reference.path).resolve()
        inner = Node(name, str(place), reference.type, reference.digest)
        node.inputs.append(read_node(inner, (*above, path), seen))
    return node


def is_attribution(row: Any) -> bool:
    """Whether a row has what `attribution_of` in recipes/curation/licence.py writes."""
    kinds = {"origin": str, "licence": str, "num_documents": int}
    return isinstance(row, dict) and {name: type(value) for name, value in row.items()} == kinds


def files_in(sources: Any) -> dict[str, str]:
    """File -> sha256 in a record of sources; of more files than it lists, their number and common digest."""
    found: dict[Any, Any] = {}
    for name, record in sources.items() if isinstance(sources, dict) else ():
        if isinstance(record, dict):
            listed = record.get("files")
            several = {f"{record.get('num_files')} files of {name}": record.get("digest")}
            found |= listed if isinstance(listed, dict) else several
    return {str(file): str(sha256) for file, sha256 in found.items()}


def all_nodes(node: Node) -> Iterator[Node]:
    """A node and all below it, from the top."""
    yield node
    for inner in node.inputs:
        yield from all_nodes(inner)


def tree_lines(node: Node, indent: str = "", branch: str = "", deeper: str = "") -> Iterator[str]:
    """The tree as text: a line for each artifact, inputs indented."""
    label = f"{node.name}: " if node.name else ""
    notes = f"  by {node.step}, {node.created_at}" if node.step else ""
    notes += "  (its inputs are shown above)" if node.repeated else ""
    notes += f"  BROKEN, {node.broken}" if node.broken else ""
    yield printable(f"{indent}{branch}{label}{node.type or 'artifact'} {node.digest[:12]}  {node.path}{notes}")
    for inner in node.inputs:
        is_last = inner is node.inputs[-1]
        yield from tree_lines(inner, indent + deeper, "└─ " if is_last else "├─ ", "   " if is_last else "│  ")


def answer_lines(top: Node) -> Iterator[str]:
    """Which raw documents, licenses, files of the user and code made it."""
    nodes = [node for node in all_nodes(top) if not node.repeated]
    yield "raw documents, by step, origin and license"
    licences: Counter[str] = Counter()
    for node in nodes:
        for row in node.attribution:
            licences[row["licence"]] += row["num_documents"]
            yield f"  {node.step}: {row['num_documents']:>9,}  {row['origin']}  {row['licence']}"
    yield "licenses, with the number of documents"
    yield from (f"  {name:<30} {number:>9,}" for name, number in sorted(licences.items()))
    if any(node.sources for node in nodes):
        yield "files of yours, with their sha256"
        yield from (f"  {sha256[:12]}  {file}" for node in nodes for file, sha256 in sorted(node.sources.items()))
    yield "code, by step: version, and digest of the source files"
    yield from (f"  {node.step}: {node.code_version}  {node.code_digest[:12]}" for node in nodes if node.step)


def mermaid(top: Node) -> str:
    """The tree as a Mermaid graph from raw data to the top; an artifact that is used twice is one box."""
    numbers: dict[str, int] = {}
    boxes, arrows = [], []
    for node in all_nodes(top):
        if node.path not in numbers or node.broken:
            number = numbers.setdefault(node.path, len(numbers))
            place = "/".join(Path(node.path).parts[-2:])
            words = f"{node.type} {node.digest[:12]}\n{place}" + (f"\nBROKEN, {node.broken}" if node.broken else "")
            boxes.append(f'    a{number}["{mermaid_text(words)}"]' + (":::broken" if node.broken else ""))
    for node in all_nodes(top):
        arrows += [
            f"    a{numbers[inner.path]} -->|{mermaid_text(inner.name)}| a{numbers[node.path]}" for inner in node.inputs
        ]
    style = ["    classDef broken stroke:#c00,stroke-width:3px"]
    return "\n".join(["flowchart BT", *boxes, *dict.fromkeys(arrows), *style])


def mermaid_text(text: str) -> str:
    """Text for a box: what Mermaid or HTML would obey is written as a number."""
    lines = [printable(line) for line in text.split("\n")]
    escaped = ["".join(c if c.isalnum() or c in " /._-,:;" else f"#{ord(c)};" for c in line) for line in lines]
    return "<br>".join(escaped)


def main(config: Config) -> int:
    """Print the lineage; return how many artifacts are broken."""
    if config.json and config.mermaid:
        raise ValueError("--json and --mermaid are both given; give one of them")
    top = read_tree(config.artifact)
    broken = [node for node in all_nodes(top) if node.broken]
    if config.json:
        print_page(json.dumps({"is_whole": not broken, "artifact": asdict(top)}, indent=2))
    elif config.mermaid:
        print_page(mermaid(top))
    else:
        whole = [f"{len({node.path for node in all_nodes(top)})} artifacts, every digest checked: nothing is broken"]
        breaks = [f"broken: {node.path}: {node.broken}" for node in broken]
        print_page("\n".join([*tree_lines(top), "", *answer_lines(top), "", *(breaks or whole)]))
    return len(broken)


if __name__ == "__main__":
    config = parse_arguments(Config)
    with step_process():
        if main(config):
            raise SystemExit(1)
