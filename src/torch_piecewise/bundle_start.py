"""Start a model from a baked bundle: the light door, which loads nothing that compiles."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from torch.nn import Module

from torch_piecewise.errors import BundleError, ConfigError
from torch_piecewise.runtime import start
from torch_piecewise.runtime.file import Verify, read_bundle
from torch_piecewise.runtime.weights import holder_of, read_safetensors
from torch_piecewise.splitting_ops import splitting_op_named
from torch_piecewise.torch_private.modules import set_compiled_call

KEY_VARIABLE = "TORCH_PIECEWISE_SIGNING_KEY_FILE"


def load(
    path: str | Path, model: Module | str | Path, *, signing_key_file: str | Path | None = None
) -> Module:
    """Start from a bundle that ``tp.bake`` wrote: nothing is traced and nothing compiled.

    ::

        model = tp.load("model.tpb", MyModel().eval())      # in place, returns model
        model = tp.load("model.tpb", "model.safetensors")   # without the model's code

    Args:
        path: the bundle.
        model: has the parameters and buffers under the names the bundle was baked with; a call of it runs
            the bundle from now on. Or a safetensors file: then a module that holds its tensors is made.
        signing_key_file: with it (or ``TORCH_PIECEWISE_SIGNING_KEY_FILE``) a bundle that is not signed
            by this key is refused.

    Returns:
        The module; calls run without gradients only.

    Raises:
        BundleError: the bundle is damaged, or made for another machine, torch, model or code; says which.
        BundleFileError: it, or the file of weights, cannot be read.
        UntrustedError: it is not signed by the key.
        StoreError: the key file cannot be read.
        ConfigError: an argument is of the wrong kind.
    """
    _check_arguments(path, model, signing_key_file)
    key_file = signing_key_file if signing_key_file is not None else os.environ.get(KEY_VARIABLE) or None
    file = read_bundle(Path(path), _trust if key_file is None else _verifier(Path(key_file)))
    if isinstance(model, Module):
        served = model
    else:
        served = holder_of(file.manifest, read_safetensors(Path(model)), file.members)
    set_compiled_call(served, start(file, served, _registered))
    return served


def _check_arguments(path: Any, model: Any, signing_key_file: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            "tp.load takes the bundle first",
            expected="the path of a file that tp.bake wrote",
            got=type(path).__name__,
            hint="tp.load(path, model)",
        )
    if not isinstance(model, Module | str | os.PathLike):
        raise ConfigError(
            "tp.load needs the weights",
            expected="an nn.Module, or the path of a safetensors file",
            got=type(model).__name__,
        )
    if not isinstance(signing_key_file, str | os.PathLike | None):
        raise ConfigError(
            "signing_key_file of tp.load is no path",
            expected="the path of a key file, or None",
            got=repr(signing_key_file),
        )


def _verifier(key_file: Path) -> Verify:
    # Imported for its cost: it loads the store, which an unsigned bundle never needs.
    from torch_piecewise.store.signing import load_key_file

    return load_key_file(key_file).verify


def _trust(_document: Any, _signature: str | None) -> None:
    """Nobody configured a key."""


def _registered(name: str, module: str) -> Any:
    """The splitting op ``name``; the module that registered it is imported where nobody did."""
    found = splitting_op_named(name)
    if found is None:
        try:
            importlib.import_module(module)
        except ImportError:
            found = None
        else:
            found = splitting_op_named(name)
    if found is None:
        raise BundleError(
            f"The bundle calls the splitting op {name}, which nobody registered",
            expected=f"a function under @tp.splitting_op({name!r}, ...); it was in module {module!r}",
            got="no such op, also after importing that module",
            hint="import the code that defines it before tp.load, or put its folder on sys.path",
        )
    return found
