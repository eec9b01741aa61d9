"""What a trace read of the model's modules beside their tensors, and how another model is told.

A row for each module of the baked model: ``[path, kind]``, where ``kinds[kind]`` holds

- ``training``: its flag;
- ``class``: its class's name, if the trace went through modules of it; what follows is there only then;
- ``optional``: true where the trace may not have gone through this one, which may then be missing;
- ``hooks``: names of its forward hooks, if it has any;
- ``own``: names of functions of this object that hide methods of its class (``forward``), if any;
- ``code``: the class's methods that a call may run, each with the tag of its code, where that is the user's;
- ``children``: names of its submodules, if the trace looked at which there are;
- ``read``: rows ``[what, how, text]``: an attribute and what it looked like; of a function of the user's
  also the tag of its code (``how`` is ``code``).

For all of them: ``names``, which the code that a call may run names, and ``python``, whose code that is.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from torch_piecewise.errors import BundleError
from torch_piecewise.runtime.code import PYTHON, code_tag, method_tags, tags_differ
from torch_piecewise.torch_private.modules import hook_tables

_STEPS = re.compile(r"(?:\.[A-Za-z_]\w*|\[(?:\d+|'[^']*')\])+")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\['([^']*)'\]")
_TABLE = re.compile(r"\._(?:parameters|buffers|modules)\['([^']*)'\]")
_LONGEST = 200
_TWO_CODES = ("the code that was baked", "other code of that name")


def is_plain_path(what: str) -> bool:
    """Whether ``what`` is attributes and items alone (``.config.sizes[0]``)."""
    return _STEPS.fullmatch(what) is not None


def read(owner: Any, what: str) -> Any:
    """The value at a plain path.

    Raises:
        LookupError, AttributeError, TypeError: there is nothing there.
    """
    for name, index, key in _STEP.findall(what):
        owner = getattr(owner, name) if name else owner[int(index) if index else key]
    return owner


def looks(how: str, value: Any) -> str:
    """What is compared, and shown to people: an ``is`` value, a ``length``, a class or function."""
    if how == "length":
        return f"length {len(value)}" if hasattr(value, "__len__") else f"a {type(value).__qualname__}"
    if how == "code":
        return code_tag(value)
    if how == "called":
        return str(getattr(value, "__qualname__", None) or f"a {type(value).__qualname__}")
    if how == "is" and not isinstance(value, torch.Tensor):
        return repr(value)[:_LONGEST]
    return "a tensor" if isinstance(value, torch.Tensor) else f"a {type(value).__qualname__}"


def hook_names(module: torch.nn.Module) -> list[str]:
    """The names of a module's forward hooks."""
    hooks = [hook for table in hook_tables(module) for hook in table.values()]
    return [str(getattr(hook, "__qualname__", type(hook).__qualname__)) for hook in hooks]


def own_functions(module: torch.nn.Module, names: Collection[str]) -> list[str]:
    """Which of ``names`` the module finds in itself where its class has a method."""
    kind = type(module)
    own = (name for name in vars(module) if name in names)
    return sorted(name for name in own if callable(inspect.getattr_static(kind, name, None)))


def check_modules(document: Mapping[str, Any], model: torch.nn.Module) -> None:
    """Refuse a model that the trace would have read otherwise. Modules that only hold tensors are passed.

    Args:
        document: ``rows``, ``kinds``, ``names``, ``python``.

    Raises:
        BundleError: names the first thing that differs.
    """
    kinds = document["kinds"]
    modules = dict(model.named_modules(remove_duplicate=False))
    names, is_comparable = frozenset(document["names"]), document["python"] == PYTHON

    @functools.cache  # for this look alone: classes can be changed
    def tags_of(kind: type) -> Mapping[str, str]:
        return method_tags(kind, names)

    for path, index in document["rows"]:
        kind, module = kinds[index], modules.get(path)
        may_be_missing = module is None and kind.get("optional", False)
        if "class" not in kind or type(module) is torch.nn.Module or may_be_missing:
            continue
        for what, expected, got in _differences(kind, module, names, tags_of if is_comparable else None):
            raise BundleError(
                f"The model does not fit the bundle: {_shown(path, what)} differs",
                expected=expected,
                got=got,
                hint="make the model as it was made for tp.bake, or bake it again",
            )


def _differences(
    kind: Mapping[str, Any],
    module: Any,
    names: Collection[str],
    tags_of: Callable[[type], Mapping[str, str]] | None,
) -> Iterator[tuple[str, str, str]]:
    """What differs, where, and how; of code only with ``tags_of``."""
    got = "no such module" if module is None else f"a {type(module).__qualname__}"
    if got != f"a {kind['class']}":
        yield "", f"a {kind['class']}", got
        return
    hooks, now = kind.get("hooks", []), hook_names(module)
    if hooks != now:
        yield ": forward hooks", ", ".join(hooks) or "none", ", ".join(now) or "none"
    own, baked_own = own_functions(module, names), kind.get("own", [])
    for name in sorted({*own} ^ {*baked_own}):
        texts = ("one of this object", "the class's own")
        yield f".{name}", texts[name in own], texts[name not in own]
    if tags_of is not None:
        baked, now_there = kind.get("code", {}), tags_of(type(module))
        for name in {**baked, **now_there}:
            if tags_differ(baked.get(name, ""), now_there.get(name, "")):
                yield f".{name}", *_TWO_CODES
    children = kind.get("children")
    if children is not None:
        yield from _other_children(children, module)
    for what, how, text in kind.get("read", ()):
        try:
            found = looks(how, read(module, what))
        except (LookupError, AttributeError, TypeError):
            found = "nothing"
        if how == "code":
            if tags_of is not None and tags_differ(text, found):
                yield what, *_TWO_CODES
        elif found != text:
            yield what, text, found


def _other_children(children: list[str], module: torch.nn.Module) -> Iterator[tuple[str, str, str]]:
    for name, child in module.named_children():
        if name not in children:
            yield f".{name}", "no such module", f"a {type(child).__qualname__}"


def _shown(path: str, what: str) -> str:
    return (path + _TABLE.sub(r".\1", what)).lstrip(".: ") or "the model itself"
