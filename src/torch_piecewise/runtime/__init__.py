"""Start a baked bundle: torch and the standard library, no Dynamo, no Inductor, no compiler, no pickle."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torch_piecewise.call_checks import check_functions
from torch_piecewise.dispatch import SizeTable, serving_range
from torch_piecewise.errors import BundleError, GuardError
from torch_piecewise.ranges import Range
from torch_piecewise.relations import Relation
from torch_piecewise.runtime.file import BundleFile
from torch_piecewise.runtime.host import check_host
from torch_piecewise.runtime.model import check_modules
from torch_piecewise.runtime.names import FindOp, resolve
from torch_piecewise.runtime.piece import start_piece
from torch_piecewise.runtime.result import result_function
from torch_piecewise.runtime.state import bind_state
from torch_piecewise.torch_private.modules import dispatch_modes_active

_MISS: Any = object()


class BundleCall:
    """A started bundle: what runs instead of the model's own call.

    Safe to call from several threads.

    Attributes:
        source: the generated function that checks a call and loads its inputs, for people.
    """

    def __init__(self, source: str, entry: Callable[..., Any], explain: Callable[..., Any]) -> None:
        self.source = source
        self._entry = entry
        self._explain = explain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the call.

        Raises:
            GuardError: it is not one that was baked; says why.
        """
        result = self._entry(*args, **kwargs)
        if result is _MISS:
            reason = self._explain(*args, **kwargs)
            sizes = reason if isinstance(reason, GuardError) else None
            raise GuardError(
                "This call is not one that the bundle was baked for",
                expected=sizes.expected if sizes is not None else None,
                got=(sizes.got if sizes is not None else reason) or "a submodule or a hook was replaced",
                hint="call it as tp.bake was shown, or bake it for such calls",
            )
        return result


def start(file: BundleFile, model: torch.nn.Module, find_op: FindOp) -> BundleCall:
    """Start a bundle on the parameters and buffers of ``model``.

    Args:
        file: as read and verified.
        model: has what the bundle reads under the names it was baked with.
        find_op: finds a splitting op that the user's code registered.

    Raises:
        BundleError: this machine, the model or the code at hand is not what the bundle needs; says which.
    """
    manifest = file.manifest
    check_host(manifest["host"], has_code=any("payload" in one for one in manifest["code"].values()))
    state = bind_state(manifest["state"], model)
    check_modules(manifest["modules"], model)
    program = _Program(file, find_op)
    scope: dict[str, Any] = {
        **{name.replace("§", "_tp_"): value for name, value in check_functions().items()},
        "_tp_MISS": _MISS,
        "_tp_GuardError": GuardError,
        "_tp_lookup": program.table.lookup,
        "_tp_find": program.table.find,
        "_tp_find_under_modes": program.mode_table.find,
        "_tp_violated": program.violated,
        "_tp_modes_active": dispatch_modes_active,
        "_tp_owner": model,
        "_tp_state_of": state,
        "_tp_tail": result_function(manifest["result"], model),
    }
    for name, value in manifest["scope"].items():
        scope[name] = resolve(value, find_op)
    places = dict(model.named_modules(remove_duplicate=False))
    for table, paths in manifest["holders"].items():
        scope |= {name: getattr(places[path], table) for name, path in paths.items()}
    source = file.text("entry.py")
    exec(compile(source, "<torch-piecewise bundle entry>", "exec"), scope)
    # Python says it of a call with other arguments.
    scope["entry"].__qualname__ = f"{manifest['model']}.forward"
    return BundleCall(source, scope["entry"], scope["explain"])


# -- the straight line


class _Program:
    """What runs for each size; the tables' ``lookup`` is the hot path."""

    def __init__(self, file: BundleFile, find_op: FindOp) -> None:
        manifest = file.manifest
        sizes = manifest["sizes"]
        self._symbols: list[str] = sizes["symbols"]
        self._names: Mapping[str, str] = sizes["names"]
        self._dispatch: str | None = sizes["dispatch"]
        self._ranges = [Range(*pair) for pair in sizes["ranges"]]
        self._exact: list[int] = sizes["exact"]
        self._relations = [Relation(*pair) for pair in manifest["relations"]]
        self._serving = {Range(*one["range"]) if one["range"] else None: one for one in manifest["serving"]}
        self._runner = file.text("runner.py")
        self._pieces: list[str] = manifest["runner"]["pieces"]
        self._constants = _constants(manifest["runner"]["constants"], find_op)
        self._code = {name: _start(one, file, find_op) for name, one in manifest["code"].items()}
        self._lock = threading.Lock()
        self._bound: dict[tuple[Range | None, str, bool], Callable[..., Any]] = {}
        self.table: SizeTable[Any, Callable[..., Any]] = SizeTable(lambda key: self._resolve(key, False))
        self.mode_table: SizeTable[Any, Callable[..., Any]] = SizeTable(lambda key: self._resolve(key, True))

    def _resolve(self, key: Any, modes: bool) -> Callable[..., Any]:
        values = dict(zip(self._symbols, key if isinstance(key, tuple) else (key,), strict=False))
        for relation in self._relations:
            self._check(relation, values)
        serving = None
        if self._dispatch is not None:
            serving = serving_range(values[self._dispatch], self._ranges, self._exact)
            if serving not in self._serving:
                raise GuardError(  # size 0, where only size 1 has code of its own
                    "The bundle has no code for this size",
                    expected=f"a size in {', '.join(map(str, self._ranges))}",
                    got=str(values[self._dispatch]),
                    hint="bake it with compile_sizes=[0] as well",
                )
        served = self._serving[serving]
        kind = "pieces"
        broken = [one for one in map(Relation, served["guards"]) if not one.holds(values)]
        if broken:
            kind = "otherwise"
            if served[kind] is None:
                self._check(broken[0], values)
        with self._lock:
            if (serving, kind, modes) not in self._bound:
                self._bound[serving, kind, modes] = self._bind(served[kind], modes)
            return self._bound[serving, kind, modes]

    def violated(self, key: Any) -> GuardError | None:
        """Why the sizes of a call are not served; None where they are."""
        try:
            self.table.find(key)
        except GuardError as error:
            return error
        return None

    def _bind(self, pieces: Mapping[str, str], modes: bool) -> Callable[..., Any]:
        callables = [self._code[pieces[name]] for name in self._pieces]
        return _line(self._runner, callables, self._constants[modes])

    def _check(self, relation: Relation, values: Mapping[str, int]) -> None:
        if relation.holds(values):
            return
        text = re.sub(r"\w+", lambda match: self._names.get(match[0], match[0]), relation.text)
        raise GuardError(
            "The sizes of this call are outside what the bundle was baked for",
            expected=f"{text}{f' (asked by {relation.where})' if relation.where else ''}",
            got=", ".join(f"{self._names.get(name, name)}={value}" for name, value in values.items()),
        )


def _constants(documents: Mapping[str, Any], find_op: FindOp) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a line refers to: splitting ops as plain bodies, and as ops for calls that something watches."""
    bodies, ops = {}, {}
    for name, document in documents.items():
        found = resolve(document, find_op)
        is_splitting = isinstance(document, dict) and "splitting_op" in document
        bodies[name] = found.body if is_splitting else found
        ops[name] = found.op if is_splitting else found
    return bodies, ops


def _line(source: str, callables: list[Any], constants: Mapping[str, Any]) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(compile(source, "<torch-piecewise bundle runner>", "exec"), scope)
    run: Callable[..., Any] = scope["make"](*callables, **constants)
    return run


def _start(code: Mapping[str, Any], file: BundleFile, find_op: FindOp) -> Callable[..., Any]:
    if "payload" not in code:
        return _line(file.text(code["source"]), [], _constants(code["constants"], find_op)[0])
    files = {name: file.members[member] for name, member in code["files"].items()}
    try:
        return start_piece(code["payload"], files)
    except (RuntimeError, OSError) as error:
        raise BundleError(
            f"The machine code of {code['label']} does not load here",
            expected="a shared object for this machine, and temporary files that code may run from",
            got=str(error).strip().splitlines()[0],
            hint="set TMPDIR to a folder that is not mounted noexec, or bake it on a machine like this one",
        ) from error
