"""Source files as ingredients: the hash of the text, under a name that holds on every machine."""

from __future__ import annotations

import importlib.util
import linecache
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch_piecewise.cache_key.base import Ingredient, short_digest
from torch_piecewise.cache_key.code import code_digest

UNREADABLE = "unreadable"


def source_ingredients(files: Iterable[str | Path]) -> Ingredient:
    """``sources``: each file by its import name and the hash of its text, sorted by name.

    Args:
        files: paths as code objects give them, repetitions allowed; ``<...>`` of interactive code works while
            its text is known.
    """
    names = _module_names(sys.modules)
    found: dict[str, set[str]] = {}
    for file in {str(file) for file in files}:
        found.setdefault(import_name(file, names), set()).add(_text_hash(file))
    # Files without a package can share a name; their texts are told apart together.
    hashes = {name: "+".join(sorted(found[name])) for name in sorted(found)}
    return Ingredient("sources", tuple(Ingredient(name, text) for name, text in hashes.items()))


def sources_again(names: Iterable[str]) -> Ingredient:
    """The same ingredient made from the names of an earlier one, with what the files hold now.

    A warm start does not trace, so it asks for the files that the trace has seen. What is not found
    any more is ``unreadable``.
    """
    parts = []
    for name in sorted(set(names)):
        file = _file_of(name)
        parts.append(Ingredient(name, UNREADABLE if file is None else _text_hash(file)))
    return Ingredient("sources", tuple(parts))


def import_name(file: str, names: Mapping[str, str] | None = None) -> str:
    """A name for a source file that does not depend on where it lies.

    Args:
        names: path -> module name of loaded modules; None looks them up.

    Returns:
        The module's name (``package.module``); of a file that is no loaded module, the path inside its
        package or on ``sys.path`` as ``package/module.py``; else the bare file name.
    """
    names = _module_names(sys.modules) if names is None else names
    if file in names:
        return names[file]
    path = Path(file)
    if file.startswith("<") or not path.is_absolute():
        return file
    top = path.parent
    while (top / "__init__.py").is_file() and top.parent != top:
        top = top.parent
    if top != path.parent:
        return path.relative_to(top).as_posix()
    places = [Path(place) for place in sys.path if place and path.is_relative_to(place)]
    longest = max(places, key=lambda place: len(place.parts), default=path.parent)
    return path.relative_to(longest).as_posix()


def function_ingredients(name: str, functions: Mapping[str, Callable[..., Any]]) -> Ingredient:
    """Functions by the code that is loaded, such as the bodies of custom ops by the op's name."""
    return Ingredient(name, tuple(Ingredient(op, code_digest(functions[op])) for op in sorted(functions)))


def _module_names(modules: Mapping[str, ModuleType]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, module in list(modules.items()):
        file = getattr(module, "__file__", None)
        # The main script has no name to import it by; it goes by its file's.
        if isinstance(file, str) and name not in ("__main__", "__mp_main__"):
            names.setdefault(file, name)
    return names


def _file_of(name: str) -> str | None:
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    if "/" in name or name.endswith(".py"):
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        if main is not None and Path(main).name == name:
            return str(Path(main).absolute())
        places = (Path(place) / name for place in sys.path)
        return next((str(path) for path in places if path.is_file()), None)
    if name.startswith("<"):
        return name
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return spec.origin if spec is not None else None


def _text_hash(file: str) -> str:
    try:
        return short_digest(Path(file).read_bytes())
    except OSError:
        lines = linecache.getlines(file)
        return short_digest("".join(lines)) if lines else UNREADABLE
