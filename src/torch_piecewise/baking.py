"""Compile ahead of time into one file, and start from it."""

from __future__ import annotations

import ctypes
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from torch_piecewise.artifact import Artifact, guard_name
from torch_piecewise.baking_result import result_document
from torch_piecewise.compiled import CompiledCall
from torch_piecewise.config import Config
from torch_piecewise.entry import Entry
from torch_piecewise.errors import BundleError, ConfigError
from torch_piecewise.model_state import StateInput
from torch_piecewise.piece import TensorSpec
from torch_piecewise.program import ANY_SIZE
from torch_piecewise.ranges import Range
from torch_piecewise.runtime_file import digest, write_bundle
from torch_piecewise.runtime_host import this_host
from torch_piecewise.runtime_names import Named
from torch_piecewise.splitting_ops import splitting_op_for
from torch_piecewise.stitching import stitch
from torch_piecewise.store.signing import load_key_file
from torch_piecewise.torch_private import modules
from torch_piecewise.torch_private.ops import op_name

logger = logging.getLogger("torch_piecewise")

_NAMES = """
    MISS GuardError lookup find find_under_modes violated modes_active owner state_of tail grad_enabled
    autocast Tensor show sharing state key run wrong error
"""
_PROVIDED = frozenset(_NAMES.split())
"""What the runtime gives the source of a call, and the source's own variables."""


_ALLOWED = {
    "mode": ("piecewise", "trace_once"),
    "guards": ("inputs", "none"),
    "cudagraph_mode": ("none", "NONE"),
}
"""Of settings that choose what stands around the pieces: what a bundle can be."""


def bake(
    model: Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any],
    path: str | Path,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    config: Config | None = None,
    tag: str | None = None,
    **fields: Any,
) -> None:
    """Compile a model for inference into one file that starts with only torch.

    ::

        tp.bake(model, (input_ids,), "model.tpb", dynamic_arg_dims={"input_ids": 1})

    The model is called once with the example inputs, under ``torch.no_grad()``, and is otherwise left as it
    is. The file holds code, no weights (except buffers that no file of weights has).

    Args:
        model: as it will be served: on its device, in its dtype, ``eval()`` if so.
        example_inputs: arguments of one call: a tuple of positional ones, or a dict of keyword ones.
        path: where to write; an existing file is replaced, by a whole one or not at all.
        example_kwargs: keyword arguments beside a tuple.
        config: settings; ``fields`` override it. ``backend`` is ``"aot_inductor"`` unless ``"eager"`` is
            given, which writes the pieces as Python.
        tag: names this part of a model in the store and in logs.

    Raises:
        ConfigError: a field or argument is malformed.
        BundleError: the model does something that cannot be written down; says what.
        PieceCompileError: a piece failed to compile.
    """
    args, kwargs = _call(model, example_inputs, example_kwargs)
    settings = _settings(config, fields)
    key = load_key_file(Path(settings.signing_key_file)) if settings.signing_key_file else None
    entry = _entry(model, args, kwargs, settings.replace(signing_key_file=None), tag)
    manifest, members = _Baker(entry.without_globals(), model).bundle(args, kwargs)
    write_bundle(Path(path), manifest, members, key.sign if key is not None else lambda _document: None)


def _call(
    model: Any, example_inputs: Any, example_kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(model, Module):
        raise ConfigError(
            "This object cannot be baked",
            expected="an nn.Module",
            got=type(model).__name__,
            hint="put the function into a module's forward",
        )
    if isinstance(example_inputs, Mapping) and example_kwargs is None:
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, dict(example_kwargs or {})
    raise ConfigError(
        "The example inputs of tp.bake are no call",
        expected="a tuple of positional arguments, or a dict of keyword arguments",
        got=type(example_inputs).__name__,
        hint="write (x,) for one argument; a tuple and example_kwargs={...} for both kinds",
    )


def _settings(config: Config | None, fields: dict[str, Any]) -> Config:
    base = config if config is not None else Config()
    if base.backend == Config().backend:
        base = base.replace(backend="aot_inductor")
    settings = (base.replace(**fields) if fields else base).with_env()
    if settings.on_miss in ("background", "eager"):
        settings = settings.replace(on_miss="compile")  # what serving may put off is the point of baking
    if settings.backend not in ("aot_inductor", "eager"):
        raise ConfigError(
            f"tp.bake cannot write down pieces of backend={settings.backend!r}",
            expected="'aot_inductor' or 'eager'",
            got=repr(settings.backend),
            hint="leave backend out",
        )
    for name, allowed in _ALLOWED.items():
        if str(getattr(settings, name)) not in allowed:
            raise ConfigError(
                f"tp.bake does not serve {name}={str(getattr(settings, name))!r}",
                expected=" or ".join(map(repr, allowed)),
                got=repr(str(getattr(settings, name))),
                hint="leave it out; tp.compile serves it",
            )
    return settings


def _entry(
    model: Module, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Config, tag: str | None
) -> Entry:
    traced = modules.traceable_call(model)
    call = CompiledCall(traced, model, settings, traced, declared=model.forward, tag=tag)
    with torch.no_grad():
        call(*args, **kwargs)
    if not call.entries:
        raise BundleError(
            "Nothing was compiled, so there is nothing to bake",
            expected="settings that compile the call",
            got=f"mode={settings.mode!r}, on_miss={settings.on_miss!r}",
        )
    return call.entries[0]


def _op_name(value: Any) -> str | None:
    try:
        return op_name(value)
    except TypeError:
        return None


def _splitting_op(value: Any) -> tuple[str, str] | None:
    op = splitting_op_for(value)
    return (op.name, op.body.__module__) if op is not None else None


class _Baker:
    """Writes one program down."""

    def __init__(self, entry: Entry, model: Module) -> None:
        self.entry = entry
        self.program = entry.program
        self.model = model
        self.named = Named(_op_name, _splitting_op)
        self.members: dict[str, bytes] = {}
        self.code: dict[str, Any] = {}

    def bundle(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The manifest and the members."""
        self._text("entry.py", self.entry.source)
        self._text("runner.py", self.program.stitched.source)
        scope, holders = self._scope()
        stitched, sizes = self.program.stitched, self.program.sizes
        specs = [spec for spec in self.entry.convention.specs if isinstance(spec, TensorSpec)]
        manifest = {
            "model": type(self.model).__qualname__,
            "host": this_host(spec.device.type for spec in specs),
            "call": self._call_description(),
            "result": result_document(self.entry, args, kwargs, self.named),
            "scope": scope,
            "holders": holders,
            "state": [self._state_entry(one) for one in self.entry.state.inputs],
            "modules": [
                [path, one.training] for path, one in self.model.named_modules(remove_duplicate=False)
            ],
            "sizes": {
                "dispatch": sizes.dispatch,
                "symbols": list(sizes.symbols),
                "names": dict(sizes.names),
                "ranges": [[one.start, one.end] for one in sizes.ranges],
                "exact": list(sizes.exact),
            },
            "relations": [[one.text, one.where] for one in self.program.relations],
            "runner": {"pieces": list(stitched.pieces), "constants": self._constants(stitched.constants)},
            "serving": [self._serving(one) for one in self._ranges()],
            "code": self.code,
        }
        return manifest, self.members

    def _text(self, name: str, text: str) -> str:
        self.members[name] = text.encode()
        return name

    def _constants(self, constants: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.named.json(value) for name, value in constants.items()}

    # -- the call

    def _call_description(self) -> list[dict[str, Any]]:
        """Where each input of the program comes from, for people."""
        convention = self.entry.convention
        described = []
        for source, spec in zip(convention.sources, convention.specs, strict=True):
            facts: dict[str, Any] = {"from": source}
            if isinstance(spec, TensorSpec):
                facts |= {"dtype": _dtype(spec), "size": list(spec.size), "device": str(spec.device)}
            described.append(facts)
        return described

    def _scope(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the source of the call refers to: values by name, and tables of parameters and buffers."""
        tables = {
            id(getattr(one, table)): (path, table)
            for path, one in self.model.named_modules()
            for table in ("_parameters", "_buffers")
        }
        scope, holders = {}, {}
        for name in sorted(set(re.findall(r"\b_tp_\w+", self.entry.source))):
            short = name.removeprefix("_tp_")
            if short in _PROVIDED:
                continue
            if short == "globals" or short.startswith("cell_"):
                raise BundleError(
                    "A bundle cannot hold this model: its code reads tensors that are not its own",
                    expected="parameters, buffers and arguments",
                    got="a global variable" if short == "globals" else f"the closed-over {short[5:]!r}",
                    hint="register it as a buffer of the model",
                )
            value = self.entry.values[name]
            if id(value) in tables:
                holders[name] = list(tables[id(value)])
            else:
                scope[name] = self.named.json(value)
        return scope, holders

    # -- parameters and buffers

    def _state_entry(self, one: StateInput) -> dict[str, Any]:
        if one.spec is None or any(isinstance(dim, str) for dim in (*one.spec.size, *one.spec.stride)):
            raise BundleError(
                f"A bundle cannot describe {one.path}", expected="a dense tensor of fixed size", got="another"
            )
        facts = {
            "dtype": _dtype(one.spec),
            "size": list(one.spec.size),
            "stride": list(one.spec.stride),
            "device": str(one.spec.device),
        }
        if one.holder is None:
            return {**facts, "name": None, "expression": one.path}
        tensor = one.holder[one.key]
        module = self.model.get_submodule(one.path.rpartition(".")[0])
        table = "_parameters" if one.holder is module._parameters else "_buffers"
        aliases = [name for name, other in _all_tensors(self.model) if other is tensor and name != one.path]
        member = None
        if not {one.path, *aliases} & self._saved():
            member = f"buffers/{one.path}"
            self.members[member] = _bytes(tensor)
        return {**facts, "name": one.path, "table": table, "aliases": aliases, "member": member}

    def _saved(self) -> set[str]:
        return set(self.model.state_dict(keep_vars=True))

    # -- the pieces

    def _ranges(self) -> Iterable[Range | None]:
        sizes = self.program.sizes
        if sizes.dispatch is None:
            return [None]
        return [*sizes.ranges, *(Range(size, size) for size in sizes.exact)]

    def _serving(self, serving: Range | None) -> dict[str, Any]:
        artifacts = self.program.artifacts(serving or ANY_SIZE)
        guards: list[str] = []
        pieces = {}
        for info in self.program.pieces.infos:
            artifact = artifacts.get(info.name)
            pieces[info.name] = self._code_of(info.name, artifact)
            for text in artifact.guards if artifact is not None else ():
                guards.append(_by_symbol(text, info.symbols))
        return {
            "range": [serving.start, serving.end] if serving is not None else None,
            "pieces": pieces,
            "guards": list(dict.fromkeys(guards)),
            "otherwise": self._otherwise() if guards else None,
        }

    def _otherwise(self) -> dict[str, str] | None:
        """The pieces as Python, for sizes that the compiler did not allow for; None where that cannot be."""
        try:
            return {info.name: self._as_python(info.name) for info in self.program.pieces.infos}
        except BundleError as error:
            logger.warning("sizes that the compiler did not allow for are refused: %s", error)
            return None

    def _code_of(self, name: str, artifact: Artifact | None) -> str:
        if artifact is None or artifact.compiler == "eager":
            return self._as_python(name)
        files = {file: _content(content) for file, content in artifact.files.items()}
        members = {file: f"code/{digest(data)[:16]}{Path(file).suffix}" for file, data in files.items()}
        payload = json.loads(artifact.payload)
        key = digest(json.dumps([payload, sorted(members.items())], sort_keys=True).encode())[:16]
        if key not in self.code:
            self.members |= {members[file]: data for file, data in files.items()}
            label = f"{artifact.fingerprint} {artifact.range}"
            self.code[key] = {"label": label, "payload": payload, "files": members}
        return key

    def _as_python(self, name: str) -> str:
        line = stitch(self.program.pieces.graph(name), ())
        constants = self._constants(line.constants)
        key = digest(json.dumps([line.source, constants], sort_keys=True).encode())[:16]
        if key not in self.code:
            member = self._text(f"code/{key}.py", line.source)
            self.code[key] = {"label": name, "source": member, "constants": constants}
        return key


def _by_symbol(guard: str, symbols: Sequence[str]) -> str:
    """An artifact's guard over the program's symbols."""
    names = {guard_name(i): symbol for i, symbol in enumerate(symbols)}
    return re.sub(r"\bsize\d+\b", lambda match: names[match[0]], guard)


def _dtype(spec: TensorSpec) -> str:
    return str(spec.dtype).removeprefix("torch.")


def _all_tensors(model: Module) -> list[tuple[str, torch.Tensor]]:
    parameters = model.named_parameters(remove_duplicate=False)
    return [*parameters, *model.named_buffers(remove_duplicate=False)]


def _bytes(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach().cpu().contiguous()
    return ctypes.string_at(dense.data_ptr(), dense.nbytes) if dense.nbytes else b""


def _content(content: bytes | Path) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()
