"""Check that imports run downward only, and that private torch names stay in one place.

``python tools/check_floors.py`` prints what is wrong and exits with 1, or nothing and 0. Rules:

- Every module stands in a room of :data:`FLOORS`. A room is a module or a package, together with the
  modules that share its name (``cut_policy`` with ``cut_policy_names``): parts of one thing.
- A module imports rooms of lower floors. Within a room modules import each other without a circle.
- Only the room ``torch_private`` names what begins with an underscore inside torch.
- A room of :data:`LIGHT` imports nothing from elsewhere but what stands there.

A function-level import counts like any other: deferring an import does not turn a wall.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "torch_piecewise"
DOOR = "__init__"

# From the top down. The number is the floor of the design; letters are steps inside it.
FLOORS: dict[str, tuple[str, ...]] = {
    # What is built with the library as its users build: through the door.
    "6d": ("__main__",),
    "6c": ("cli",),
    "6b": ("demo", "seeing_cli"),
    "6a": (DOOR,),
    "5b": ("doctor",),
    "5a": ("bundle_start", "api", "cache_cli", "testing", "integrations"),
    "4g": ("compiled",),
    "4f": ("serving", "saving"),
    # What a model's handle offers for looking at it; below the handle, and knows programs only.
    "4e": ("observing", "explaining", "baking"),
    "4d": ("report",),
    "4c": ("tracing", "trials"),
    "4b": ("backend", "capture", "keeping"),
    "4a": ("entry", "managers", "record", "stand_ins", "trace_facts", "static_calls", "flat_call"),
    "3e": ("program",),
    "3d": ("replay_facts", "supply"),
    "3c": ("manager", "stitching"),
    "3b": ("pool", "progress"),
    "3a": (
        "subject",
        "workers",
        "describe",
        "artifact_store",
        "saved_artifacts",
        "inspection",
        "lost_gradients",
        "whole_model",
        "inductor_partition",
    ),
    "2b": (
        "worker",
        "splitting",
        "fingerprint",
        "cache_key",
        "compilers",
        "cudagraphs",
        "store",
        "pad_values",
        "padding",
    ),
    "2a": (
        "example_call",
        "normalize",
        "cut_policy",
        "regions",
        "splitting_ops",
        "input_guards",
        "dynamic_dims",
        "call_form",
        "background",
        "size_limits",
        "graph_bytes",
        "dumps",
        "passes",
    ),
    "1e": ("runtime",),
    "1d": ("model_state",),
    # Above the values, because what it returns is described by them.
    "1c": ("torch_private",),
    "1b": ("convention", "call_checks", "guard_policy"),
    "1a": ("artifact", "config", "events", "piece", "relations"),
    "0c": ("dispatch",),
    "0b": ("ranges", "tags", "completion", "ignoring"),
    "0a": ("errors", "capture_sizes", "cudagraph_mode", "frozen_map"),
}

# What each of these rooms may import from outside the standard library. A baked bundle starts with the
# runtime alone, and every command reads the settings first, so their imports are somebody's waiting time.
LIGHT: dict[str, frozenset[str]] = {
    "runtime": frozenset({"torch"}),
    "config": frozenset(),
}

PRIVATE_ROOM = "torch_private"


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        line: where.
        target: inside the package, the module's name without the package's (``passes.base``, and
            :data:`DOOR` for the package itself); None outside.
        outside: the full dotted name outside the package; None inside.
    """

    line: int
    target: str | None = None
    outside: str | None = None


def module_name(path: Path, root: Path) -> str:
    """``passes.base`` for ``root/passes/base.py``; a package is named by its folder."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] == DOOR:
        parts = parts[:-1]
    return ".".join(parts) or DOOR


def room_of(module: str) -> str | None:
    """The room a module stands in: the longest listed name that it is, or is a part of."""
    top = module.split(".", maxsplit=1)[0]
    rooms = [room for row in FLOORS.values() for room in row if top == room or top.startswith(f"{room}_")]
    return max(rooms, key=len, default=None)


def depth(room: str) -> int:
    """How many floors stand above."""
    return next(i for i, row in enumerate(FLOORS.values()) if room in row)


def imports(tree: ast.Module, modules: frozenset[str]) -> Iterator[Import]:
    """Every import in a file, wherever it stands; ``modules`` tells modules from the names in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (_import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _import_from(node, modules)


def _import(line: int, dotted: str) -> Import:
    if dotted.split(".", maxsplit=1)[0] != PACKAGE:
        return Import(line, outside=dotted)
    return Import(line, target=dotted.removeprefix(PACKAGE).lstrip(".") or DOOR)


def _import_from(node: ast.ImportFrom, modules: frozenset[str]) -> Iterator[Import]:
    base = "." * node.level + (node.module or "")
    for alias in node.names:
        whole = _import(node.lineno, f"{base}.{alias.name}")
        yield whole if whole.outside or whole.target in modules else _import(node.lineno, base)


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each private name of torch; ``torch.ops`` holds operations, whose names are public."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            if dotted.startswith("torch.") and not dotted.startswith("torch.ops.") and _is_private(node.attr):
                yield node.lineno, dotted
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for found in imports(ast.Module([node], []), frozenset()):
                if found.outside and _is_privately_torch(found.outside):
                    yield found.line, found.outside


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_privately_torch(dotted: str) -> bool:
    first, *rest = dotted.split(".")
    return first == "torch" and any(map(_is_private, rest))


def problems(root: Path) -> list[str]:
    """What breaks the rules in the package at ``root``, one line each, in order of file and line."""
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    found: list[str] = []
    inside: dict[str, set[str]] = {}
    for name, tree in trees.items():
        where = files[name].relative_to(root.parent)
        room = room_of(name)
        if room is None:
            found.append(f"{where}: stands in no room; list it in tools/check_floors.py")
            continue
        uses = sorted(imports(tree, frozenset(files)), key=lambda use: use.line)
        found += [f"{where}:{use.line}: {fault}" for use in uses if (fault := _fault(room, use))]
        if room != PRIVATE_ROOM:
            found += [
                f"{where}:{line}: {dotted} is private; reach it through {PRIVATE_ROOM}"
                for line, dotted in private_names(tree)
            ]
        inside[name] = {use.target for use in uses if use.target and room_of(use.target) == room} - {name}
    return found + _circles(inside)


def _fault(room: str, use: Import) -> str | None:
    if use.outside is not None:
        return _foreign(room, use.outside)
    target = room_of(use.target or DOOR)
    if target is None or target == room or depth(target) > depth(room):
        return None
    return f"{room} imports {use.target}, which does not stand below it"


def _foreign(room: str, dotted: str) -> str | None:
    if dotted.startswith("."):
        return f"{dotted} is relative; write the whole name"
    first = dotted.split(".", maxsplit=1)[0]
    if room not in LIGHT or first in sys.stdlib_module_names or first in LIGHT[room]:
        return None
    return f"{room} imports {first}, but has to start without it"


def _circles(uses: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        return [f"{PACKAGE}: modules import each other in a circle: {' -> '.join(error.args[1])}"]
    return []


def main() -> int:
    """Check this repository; the exit status."""
    found = problems(Path(__file__).parents[1] / "src" / PACKAGE)
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
