"""Write one program down as the manifest and the members of a bundle."""

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
from torch_piecewise.baking.model import modules_document
from torch_piecewise.baking.result import result_document
from torch_piecewise.call_checks import check_functions
from torch_piecewise.errors import BundleError
from torch_piecewise.model_state import StateInput
from torch_piecewise.piece import TensorSpec
from torch_piecewise.program import ANY_SIZE
from torch_piecewise.ranges import Range
from torch_piecewise.runtime.file import digest
from torch_piecewise.runtime.host import this_host
from torch_piecewise.runtime.names import Named
from torch_piecewise.runtime.state import PLAIN_TENSORS, shared_memory
from torch_piecewise.splitting_ops import splitting_op_for
from torch_piecewise.stitching import stitch
from torch_piecewise.torch_private.ops import op_name
from torch_piecewise.tracing import Traced

logger = logging.getLogger("torch_piecewise")

_NAMES = """
    MISS GuardError lookup find find_under_modes violated modes_active owner state_of tail
    state key run wrong error
"""
_PROVIDED = frozenset(_NAMES.split()) | {name.removeprefix("§") for name in check_functions()}
"""What the runtime gives the source of a call, and the source's own variables."""


def _op_name(value: Any) -> str | None:
    try:
        return op_name(value)
    except TypeError:
        return None


def _splitting_op(value: Any) -> tuple[str, str] | None:
    op = splitting_op_for(value)
    return (op.name, op.body.__module__) if op is not None else None


class ProgramWriter:
    """Writes one program down.

    Args:
        traced: a call of ``model``; every piece is compiled, or will be when it is asked for.
    """

    def __init__(self, traced: Traced, model: Module) -> None:
        # Those are the baking process's: the one that serves may not even have the modules of globals.
        self.entry = traced.entry.without_surroundings()
        self.program = self.entry.program
        self.model = model
        self._traced = traced
        self.named = Named(_op_name, _splitting_op)
        self.members: dict[str, bytes] = {}
        self.code: dict[str, Any] = {}

    def bundle(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The manifest, all but the list of members, and the members.

        Args:
            args, kwargs: of the call that was traced.

        Raises:
            BundleError: something of it cannot be written down; says what.
        """
        self._text("entry.py", self.entry.source)
        self._text("runner.py", self.program.stitched.source)
        scope, holders = self._scope()
        stitched, sizes = self.program.stitched, self.program.sizes
        specs = [spec for spec in self.entry.convention.specs if isinstance(spec, TensorSpec)]
        manifest = {
            "model": type(self.model).__qualname__,
            "host": this_host(spec.device.type for spec in specs),
            "call": self._call_description(),
            "scope": scope,
            "holders": holders,
            "state": self._state(),
            "result": result_document(self.entry, args, kwargs, self.named),
            "modules": modules_document(
                self.model,
                self._traced.guards,
                f"L[{self.entry.convention.owner_name!r}]",
                [one.path for one in self.entry.state.inputs if one.holder is not None],
            ),
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
        """The arguments of a call, for people."""
        convention = self.entry.convention
        described = []
        for at, (source, spec) in enumerate(zip(convention.sources, convention.specs, strict=True)):
            if at not in self.entry.watched and isinstance(spec, TensorSpec):
                described.append({"from": source, **_facts(spec)})
        return described

    def _scope(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the source of the call refers to: values by name, and tables of modules by module."""
        tables = {
            id(getattr(one, table)): (path, table)
            for path, one in self.model.named_modules()
            for table in ("_parameters", "_buffers")
        }
        scope: dict[str, Any] = {}
        holders: dict[str, dict[str, str]] = {}
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
                path, table = tables[id(value)]
                holders.setdefault(table, {})[name] = path
            else:
                scope[name] = self.named.json(value)
        return scope, holders

    # -- parameters and buffers

    def _state(self) -> dict[str, Any]:
        inputs = self.entry.state.inputs
        names_of: dict[int, list[str]] = {}
        for name, tensor in _all_tensors(self.model):
            names_of.setdefault(id(tensor), []).append(name)
        saved = self._saved()
        kinds: dict[str, int] = {}
        rows, aliases, members = [], {}, {}
        for one in inputs:
            kind = json.dumps(self._state_kind(one))
            rows.append([one.path, kinds.setdefault(kind, len(kinds))])
            if one.holder is None:
                continue
            tensor = one.holder[one.key]
            others = [name for name in names_of[id(tensor)] if name != one.path]
            if others:
                aliases[one.path] = others
            if not {one.path, *others} & saved:
                members[one.path] = f"buffers/{one.path}"
                self.members[members[one.path]] = _bytes(tensor)
        written = self._written()
        tensors = [None if one.holder is None else one.holder[one.key] for one in inputs]
        return {
            "kinds": [json.loads(kind) for kind in kinds],
            "rows": rows,
            "aliases": aliases,
            "members": members,
            "written": written,
            "shared": shared_memory(tensors, written),
        }

    def _state_kind(self, one: StateInput) -> dict[str, Any]:
        tensor = one.holder[one.key] if one.holder is not None else None
        got = type(tensor).__qualname__ if tensor is not None else "another"
        if (
            one.spec is None
            or any(isinstance(dim, str) for dim in (*one.spec.size, *one.spec.stride))
            or (tensor is not None and type(tensor) not in PLAIN_TENSORS)
        ):
            raise BundleError(
                f"A bundle cannot describe {one.path}",
                expected="a dense tensor of fixed size and of no class of its own",
                got=got,
            )
        table = None
        if one.holder is not None:
            module = self.model.get_submodule(one.path.rpartition(".")[0])
            table = "_parameters" if one.holder is module._parameters else "_buffers"
        return {"table": table, **_facts(one.spec), "stride": list(one.spec.stride)}

    def _written(self) -> list[int]:
        """Positions among the parameters and buffers of those that a call changes in place."""
        sources = self.entry.convention.sources
        state = [source for at, source in enumerate(sources) if at in self.entry.watched]
        return [at for at, source in enumerate(state) if source in self._traced.changed]

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
            label = f"{artifact.piece} {artifact.range}"
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


def _facts(spec: TensorSpec) -> dict[str, Any]:
    dtype = str(spec.dtype).removeprefix("torch.")
    return {"dtype": dtype, "size": list(spec.size), "device": str(spec.device)}


def _all_tensors(model: Module) -> list[tuple[str, torch.Tensor]]:
    parameters = model.named_parameters(remove_duplicate=False)
    return [*parameters, *model.named_buffers(remove_duplicate=False)]


def _bytes(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach().cpu().contiguous()
    return ctypes.string_at(dense.data_ptr(), dense.nbytes) if dense.nbytes else b""


def _content(content: bytes | Path) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()
