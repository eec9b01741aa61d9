"""How a program's outputs become a call's result: a JSON tree, written out as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from torch_piecewise.errors import BundleError
from torch_piecewise.runtime.names import resolve


def result_function(document: Mapping[str, Any], model: torch.nn.Module) -> Callable[..., Any]:
    """The function that builds the result.

    Args:
        model: whose buffers it replaces where the model's own code does: ``assigned``, a list of the module's
            path, the table, the name, and the tree.
        document: ``parameters``, the function's own, one of them ``outputs``; ``outputs``, its name; and
            ``tree``: ``{"output": number}``, ``{"argument": name}``, ``{"value": constant}``, a ``tuple``, a
            ``list``, a ``dict`` as pairs, or a ``class`` with named ``fields`` or positional ``items``.
    """
    scope: dict[str, Any] = {}
    lines = [f"def result({', '.join(document['parameters'])}):"]
    for path, table, name, tree in document["assigned"]:
        holder = _kept(getattr(model.get_submodule(path), table), scope)
        lines.append(f"    {holder}[{name!r}] = {_text(tree, document['outputs'], scope)}")
    lines.append(f"    return {_text(document['tree'], document['outputs'], scope)}\n")
    source = "\n".join(lines)
    exec(compile(source, "<torch-piecewise result>", "exec"), scope)
    made: Callable[..., Any] = scope["result"]
    return made


def _text(tree: Mapping[str, Any], outputs: str, scope: dict[str, Any]) -> str:
    kind, content = next(iter(tree.items()))
    if kind == "output":
        return f"{outputs}[{int(content)}]"
    if kind == "argument":
        return str(content)
    if kind == "value":
        return _kept(resolve(content, _no_op), scope)
    if kind in ("tuple", "list"):
        parts = "".join(f"{_text(item, outputs, scope)}, " for item in content)
        return f"({parts})" if kind == "tuple" else f"[{parts}]"
    if kind == "dict":
        pairs = (
            f"{_kept(resolve(key, _no_op), scope)}: {_text(item, outputs, scope)}, " for key, item in content
        )
        return "{" + "".join(pairs) + "}"
    called = _kept(resolve({"class": content}, _no_op), scope)
    given = [_text(item, outputs, scope) for item in tree.get("items", ())]
    given += [f"{name}={_text(item, outputs, scope)}" for name, item in tree.get("fields", {}).items()]
    return f"{called}({', '.join(given)})"


def _kept(value: Any, scope: dict[str, Any]) -> str:
    name = f"_value_{len(scope)}"
    scope[name] = value
    return name


def _no_op(name: str, _module: str) -> Any:
    raise BundleError(f"The bundle's result holds the op {name}, which is no value")
