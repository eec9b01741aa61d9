"""The model that a script or a function offers to the command."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn import Module

import torch_piecewise as tp
from torch_piecewise.errors import ConfigError

_SETTINGS = "(settings)"
"""No name of a script's: what a function returned beside the model, as for ``bake``."""

_HOW = "a script that defines model and example_inputs, or MODULE:FUNCTION that returns both"


class _NotGiven:
    """Stands for inputs that nobody gave; None is an input."""


NOT_GIVEN = _NotGiven()


@dataclass(frozen=True)
class Target:
    """What is looked at.

    Attributes:
        compiled: handles by the names that the script gives the models; in the script's order.
        inputs: its ``example_inputs``; :data:`NOT_GIVEN` where it defines none.
    """

    compiled: Mapping[str, Any]
    inputs: Any


def load(text: str) -> Target:
    """Run a script, or call ``MODULE:FUNCTION``, and find the models in it.

    A model that is not compiled there is compiled with the settings that a function returned beside it, and
    those of the environment.

    Raises:
        ConfigError: there is no such script or function, or no model in it.
    """
    names = _from_function(text) if _is_function(text) else _from_script(Path(text))
    compiled = {name: handle for name, value in names.items() if (handle := _handle(value)) is not None}
    model = names.get("model")
    if not compiled and (isinstance(model, Module) or inspect.isfunction(model)):
        compiled = {"model": tp.program_of(tp.compile(model, **names.get(_SETTINGS, {})))}
    if not compiled:
        raise ConfigError(f"{text} offers no model", expected=_HOW, got=_offered(names))
    return Target(compiled, names.get("example_inputs", NOT_GIVEN))


def is_code(text: str) -> bool:
    """Whether ``text`` names a script or a function, and not something that was kept."""
    return text.endswith(".py") or _is_function(text)


def _is_function(text: str) -> bool:
    module, colon, function = text.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _from_script(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"There is no script {path}", expected=_HOW)
    # As python SCRIPT does; the module stays known, because sources are looked up by it.
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return dict(vars(module))


def _from_function(text: str) -> dict[str, Any]:
    module, _, name = text.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{text} cannot be found", expected=_HOW, got=str(error)) from error
    made = function()
    if isinstance(made, tuple) and len(made) == 2:
        return {"model": made[0], "example_inputs": made[1]}
    if isinstance(made, tuple) and len(made) == 3 and isinstance(made[2], Mapping):
        return {"model": made[0], "example_inputs": made[1], _SETTINGS: made[2]}
    return {"model": made}


def _handle(value: Any) -> Any:
    if isinstance(value, type) or not callable(value):
        return None
    try:
        return tp.program_of(value)
    except ConfigError:
        return None


def _offered(names: Mapping[str, Any]) -> str:
    own = [name for name in names if not name.startswith("__")]
    return f"only {', '.join(own[:12])}" if own else "nothing"
