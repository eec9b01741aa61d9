"""Which module calls a node is part of, as graphs of different makes tell it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch.fx import Node


def module_calls(node: Node) -> Iterator[tuple[str, type | str]]:
    """Each module call around ``node``, outermost first: what tells it from others, and the module's class.

    A class is given by name where the graph holds only that (``torch.export``).
    """
    for key, (path, called) in (node.meta.get("nn_module_stack") or {}).items():
        yield f"{key}:{path}", called
    owner = node.graph.owning_module
    if node.op == "call_module" and owner is not None:
        yield node.name, type(owner.get_submodule(str(node.target)))


def is_call_of(called: type | str, wanted: type) -> bool:
    """Whether a module of this class is one of ``wanted``: of it, or of a class derived from it."""
    if isinstance(called, str):
        return called == f"{wanted.__module__}.{wanted.__qualname__}" or is_call_of(_found(called), wanted)
    return issubclass(called, wanted)


def _found(name: str) -> type:
    """The class of this name where it is loaded, else a class that is nobody's."""
    module, _, path = name.rpartition(".")
    while module and module not in sys.modules:
        module, _, outer = module.rpartition(".")
        path = f"{outer}.{path}"
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else object
