"""The text of the function that stands in for the model's call, and the names it refers to.

It is generated Python with the model's own signature, so that a call costs a few attribute compares, one
look-up of the size and the straight line.
"""

from __future__ import annotations

import inspect
import re
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from torch_piecewise.call_checks import check_functions
from torch_piecewise.convention import TAIL_ARGUMENT, Convention
from torch_piecewise.errors import GuardError
from torch_piecewise.model_state import State, StateInput
from torch_piecewise.piece import TensorSpec
from torch_piecewise.program import Program
from torch_piecewise.torch_private.modules import dispatch_modes_active

if TYPE_CHECKING:
    from torch_piecewise.torch_private.full_guards import FullGuards

MISS: Any = object()
"""What an entry returns instead of a result when the call is not one it was traced for."""

_STATE = re.compile(r"(?P<owner>L\['self'\].*?)(\._parameters|\._buffers)\['(?P<name>[^']+)'\]$")
_MODULE_STEP = re.compile(r"\._modules\['([^']+)'\]")


@dataclass(frozen=True)
class CallShape:
    """How a traced function is called.

    Attributes:
        signature: of the call people make, ``self`` left out.
        owner: the module or object the function is bound to; None for a plain function.
        function: the traced function itself, unbound.
    """

    signature: inspect.Signature
    owner: Any
    function: types.FunctionType


class EntryWriter:
    """Collects the names that the generated function refers to, then writes it.

    Args:
        guards: what a call has to meet beside the convention's checks; None: nothing.
    """

    def __init__(
        self, convention: Convention, shape: CallShape, program: Program, guards: FullGuards | None
    ) -> None:
        self.guards = guards
        self.convention = convention
        self.shape = shape
        self.program = program
        self.values: dict[str, Any] = {
            **check_functions(),
            **convention.values,
            "§MISS": MISS,
            "§GuardError": GuardError,
            "§lookup": program.table.lookup,
            "§find": program.table.find,
            "§find_under_modes": program.mode_table.find,
            "§violated": program.violated,
            "§modes_active": dispatch_modes_active,
            "§tail": convention.tail_function(shape.function),
            "§texts": tuple(check.text for check in convention.checks),
            "§owner": shape.owner,
            "§globals": shape.function.__globals__,
        }
        owner = shape.owner
        self.state = State(
            *self._state(), list(owner.modules()) if isinstance(owner, torch.nn.Module) else []
        )
        self.values["§state_of"] = self.state
        if guards is not None:
            self.values |= {"§guards_hold": guards.hold, "§guard_reason": guards.reason}

    def _state(self) -> tuple[list[StateInput], list[tuple[str, dict[str, Any], str]]]:
        inputs: list[StateInput] = []
        children: dict[str, tuple[str, dict[str, Any], str]] = {}
        self.loads: list[str] = []
        for source, spec in zip(self.convention.sources, self.convention.specs, strict=True):
            match = self._state_match(source)
            if match is None and isinstance(spec, TensorSpec) and self._is_no_argument(source):
                self.loads.append(f"§state[{len(inputs)}]")
                inputs.append(StateInput(source, None, self._local(source), spec))
                continue
            if match is None:
                self.loads.append(self._local(source))
                continue
            module = self.shape.owner
            path: list[str] = []
            for name in _MODULE_STEP.findall(match["owner"]):
                path.append(name)
                children.setdefault(".".join(path), (".".join(path), module._modules, name))
                module = module._modules[name]
            holder = module._parameters if "._parameters[" in source else module._buffers
            self.loads.append(f"§state[{len(inputs)}]")
            inputs.append(
                StateInput(
                    ".".join([*path, match["name"]]),
                    holder,
                    match["name"],
                    spec if isinstance(spec, TensorSpec) else None,
                )
            )
        return inputs, list(children.values())

    def _is_no_argument(self, source: str) -> bool:
        """Whether ``source`` is an attribute of the object that the function is bound to, or a global."""
        owner = self.convention.owner_name
        return source.startswith("G[") or (owner is not None and source.startswith(f"L[{owner!r}]"))

    def _state_match(self, source: str) -> re.Match[str] | None:
        if self.convention.owner_name is None or not isinstance(self.shape.owner, torch.nn.Module):
            return None
        match = _STATE.match(source.replace(f"L['{self.convention.owner_name}']", "L['self']", 1))
        if match is None or _MODULE_STEP.sub("", match["owner"]) != "L['self']":
            return None
        return match

    # -- text: names of ours begin with a sign that no Python name has until the end, so that none can be
    # mistaken for one of the model's own arguments.

    def source(self) -> str:
        """``entry`` (the call), ``explain`` (why a call is another one) and ``key`` (its sizes)."""
        parameters = self._parameters()
        bodies = {
            "entry": self._entry_lines(),
            "explain": self._explain_lines(),
            "key": [*self._cell_lines(), f"return {self._key()}"],
        }
        lines: list[str] = []
        for name, body in bodies.items():
            lines += [f"def {name}({parameters}):", *(f"    {line}" for line in body), ""]
        return "\n".join(lines).replace("§", "_tp_")

    @property
    def scope(self) -> dict[str, Any]:
        """The globals of the generated functions."""
        return {name.replace("§", "_tp_"): value for name, value in self.values.items()}

    def _parameters(self) -> str:
        parts: list[str] = []
        star_seen = False
        parameters = list(self.shape.signature.parameters.values())
        for index, parameter in enumerate(parameters):
            if parameter.kind is parameter.VAR_POSITIONAL:
                star_seen = True
                parts.append(f"*{parameter.name}")
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                parts.append(f"**{parameter.name}")
                continue
            if parameter.kind is parameter.KEYWORD_ONLY and not star_seen:
                star_seen = True
                parts.append("*")
            text = parameter.name
            if parameter.default is not parameter.empty:
                self.values[f"§default_{parameter.name}"] = parameter.default
                text += f"=§default_{parameter.name}"
            parts.append(text)
            following = parameters[index + 1] if index + 1 < len(parameters) else None
            only = parameter.kind is parameter.POSITIONAL_ONLY
            if only and (following is None or following.kind is not parameter.POSITIONAL_ONLY):
                parts.append("/")
        return ", ".join(parts)

    def _entry_lines(self) -> list[str]:
        checks = self._conditions()
        lines = self._cell_lines()
        if checks:
            lines += ["if not (", *(f"    {'and ' if i else ''}{c}" for i, c in enumerate(checks)), "):"]
            lines.append("    return §MISS")
        if self.state.inputs:
            lines.append(f"§state = {self._state_tuple()}")
        if self.state.inputs and not self.convention.unchecked:
            lines.append("if not §state_of.is_known(§state) and §state_of.difference(§state) is not None:")
            lines.append("    return §MISS")
        outputs = f"§run({', '.join(self.loads)})"
        return [
            *lines,
            f"§key = {self._key()}",
            "§run = §lookup(§key)",
            "if §run is None or §modes_active():",
            "    try:",
            "        §run = §find_under_modes(§key) if §modes_active() else §find(§key)",
            "    except §GuardError:",
            "        return §MISS",
            f"return §tail({self._tail_arguments(outputs)})",
        ]

    def _conditions(self) -> list[str]:
        """What has to be true of a call, the cheapest first."""
        checks = [check.expression for check in self.convention.checks]
        if self.state.inputs and not self.convention.unchecked:
            checks.append("§state_of.children_unchanged()")
        if isinstance(self.shape.owner, torch.nn.Module) and not self.convention.unchecked:
            checks.append("§state_of.hooks_unchanged()")
        if self.guards is not None:
            checks.append(f"§guards_hold({self._frame()})")
        return checks

    def _frame(self) -> str:
        """The locals of the traced frame, closed-over variables included, as a dict."""
        names = [*self.shape.signature.parameters, *self._cells()]
        pairs = [f"{name!r}: {name}" for name in names]
        if self.convention.owner_name is not None:
            pairs.insert(0, f"{self.convention.owner_name!r}: §owner")
        return f"{{{', '.join(pairs)}}}"

    def _state_tuple(self) -> str:
        holders: dict[int, str] = {}
        loads = []
        for entry in self.state.inputs:
            if entry.holder is None:
                loads.append(entry.key)
                continue
            name = holders.setdefault(id(entry.holder), f"§holder_{len(holders)}")
            self.values[name] = entry.holder
            loads.append(f"{name}[{entry.key!r}]")
        return f"({', '.join(loads)},)"

    def _cell_lines(self) -> list[str]:
        mentioned = self._mentioned()
        used = {
            name: cell for name, cell in self._cells().items() if self.guards is not None or name in mentioned
        }
        self.values |= {f"§cell_{name}": cell for name, cell in used.items()}
        return [f"{name} = §cell_{name}.cell_contents" for name in used]

    def _cells(self) -> dict[str, types.CellType]:
        """The closed-over variables of the traced function."""
        function = self.shape.function
        return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))

    def _mentioned(self) -> set[str]:
        """Every word in the sources and checks that may be a variable's name."""
        in_sources = re.findall(r"(?<![\w.])[^\W\d]\w*", " ".join(self.convention.sources))
        checks = " ".join(check.expression for check in self.convention.checks)
        return {*in_sources, *re.findall(r"(?<![\w.§'\"])[^\W\d]\w*", checks)}

    def _explain_lines(self) -> list[str]:
        lines = self._cell_lines()
        for index, check in enumerate(self.convention.checks):
            lines += [
                f"if not ({check.expression}):",
                f"    return §texts[{index}] + ', got ' + str({check.got})",
            ]
        if self.state.inputs:
            lines += [
                f"§wrong = §state_of.difference({self._state_tuple()})",
                "if §wrong is not None:",
                "    return §wrong",
            ]
        lines += [f"§wrong = §violated({self._key()})", "if §wrong is not None:", "    return §wrong"]
        return [
            *lines,
            f"return §guard_reason({self._frame()})" if self.guards is not None else "return None",
        ]

    def _key(self) -> str:
        readers = [self._local(self._reader(symbol)) for symbol in self.program.sizes.symbols]
        if not readers:
            return "0"
        return readers[0] if len(readers) == 1 else f"({', '.join(readers)})"

    def _reader(self, symbol: str) -> str:
        return self.program.sizes.names[symbol]

    def _local(self, source: str) -> str:
        """``source`` (over ``L`` and ``G``) as an expression inside the generated function."""
        text = re.sub(r"L\['(\w+)'\]", lambda m: self._name(m[1]), source)
        text = re.sub(r"\bG\[", "§globals[", text)
        return re.sub(r"\.size\(\)\[(\d+)\]", r".size(\1)", text)

    def _name(self, local: str) -> str:
        return "§owner" if local == self.convention.owner_name else local

    def _tail_arguments(self, outputs: str) -> str:
        code = self.convention.tail
        positional = code.co_varnames[: code.co_argcount]
        parts = [outputs if name == TAIL_ARGUMENT else self._name(name) for name in positional]
        named = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        rest = list(code.co_varnames[code.co_argcount + code.co_kwonlyargcount :])
        if code.co_flags & inspect.CO_VARARGS:
            parts.append(f"*{rest.pop(0)}")
        parts += [f"{name}={name}" for name in named]
        if code.co_flags & inspect.CO_VARKEYWORDS:
            parts.append(f"**{rest.pop(0)}")
        return ", ".join(parts)
