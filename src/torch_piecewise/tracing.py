"""From a call to an entry: trace, build the program, write down the calling convention."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch_piecewise.backend import Workshop
from torch_piecewise.call_form import call_form
from torch_piecewise.capture import capture
from torch_piecewise.config import Config
from torch_piecewise.convention import files_of_constants
from torch_piecewise.cudagraphs.breakable import capture_in_progress
from torch_piecewise.describe import changed_inputs
from torch_piecewise.dynamic_dims import Dims
from torch_piecewise.entry import CallShape, Entry
from torch_piecewise.errors import CaptureError
from torch_piecewise.events import Bus, GraphCaptured
from torch_piecewise.input_guards import convention_of
from torch_piecewise.inspection import Inspection
from torch_piecewise.managers import Managers
from torch_piecewise.torch_private.dynamo import InputGuard
from torch_piecewise.torch_private.shapes import describe_input
from torch_piecewise.torch_private.structured_trace import under_compile_of


def _called_in_a_capture() -> CaptureError:
    return CaptureError(
        "A compiled model meets a call that it has not been traced for while that call is captured",
        expected="a call of a kind that was traced and compiled before the capture",
        got="the first one of its kind, inside the capture of a static graph",
        hint="call the model once as it will be captured, outside of forward_context (or with "
        "CUDAGraphMode.NONE), then capture",
    )


@dataclass(frozen=True)
class Traced:
    """A fresh entry, with what is kept beside it.

    Attributes:
        sources: files of all code that the trace ran through.
        companions: writes texts for people: file name -> text.
        inspection: takes more for people.
        guards: everything that the trace read.
        changed: sources of the graph inputs that it changes in place.
    """

    entry: Entry
    sources: tuple[str, ...]
    companions: Callable[[], dict[str, str]]
    inspection: Inspection
    guards: tuple[InputGuard, ...]
    changed: tuple[str, ...]


class Tracer:
    """Makes an entry for each kind of call of one callable.

    Args:
        function: what to trace: a function or bound method.
        named: its parameters by the names people know.
        owner: the module or object it is bound to; None for a plain function.
        dims: which dims of its arguments are dynamic.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        named: inspect.Signature,
        owner: Any,
        dims: Dims,
        config: Config,
        bus: Bus,
        managers: Managers,
    ) -> None:
        self._function = function
        self._named = named
        self._owner = owner
        self._dims = dims
        self._config = config
        self._bus = bus
        self._workshop = Workshop(config, bus, managers)

    def trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
        """Trace and compile for calls like this one.

        Raises:
            CaptureError: the call is being captured as a static graph; or it cannot be traced as one graph.
        """
        if capture_in_progress():
            raise _called_in_a_capture()
        call = call_form(self._function, self._named, args, kwargs)
        with self._bus.phase("trace"):
            captured = capture(self._function, call, self._dims, self._config)
        raw = captured.raw
        self._bus.emit(
            GraphCaptured(
                nodes=len(raw.graph.graph.nodes),
                blocks_shared=raw.blocks_shared,
                blocks_apart=raw.blocks_apart,
            )
        )
        changed = [raw.sources[index] for index in changed_inputs(raw.graph)]
        label = type(self._owner).__qualname__ if self._owner is not None else raw.traced.__qualname__
        inspection = Inspection(self._config, self._bus.tag, label)
        with under_compile_of(raw.graph):
            program = self._workshop.build(
                raw.graph,
                shape_env=raw.shape_env,
                relations=captured.relations,
                dispatch=captured.dispatch,
                symbols=captured.symbols,
                arguments=call.bound.arguments.keys(),
                inspection=inspection,
            )
        bound = call.bound
        bound.apply_defaults()
        owner_name = raw.argument_names[0] if self._owner is not None else None
        frame = {**bound.arguments, **closure_values(raw.traced)}
        if owner_name is not None:
            frame[owner_name] = self._owner
        specs = [describe_input(fake) for fake in raw.fakes]
        shape = CallShape(bound.signature, self._owner, raw.traced)
        convention = convention_of(raw, owner_name, frame, specs, changed)
        if self._config.guards == "none":
            convention = dataclasses.replace(convention, checks=(), unchecked=True)
        entry = Entry(convention, shape, program, raw.full_guards)
        inspection.add("transformed_code.py", entry.source)
        return Traced(
            entry=entry,
            sources=(*raw.files, *files_of_constants(raw.tail)),
            companions=lambda: {
                "computation_graph.py": raw.graph.print_readable(print_output=False),
                "transformed_code.py": entry.source,
                "runner.py": program.stitched.source,
            },
            inspection=inspection,
            guards=raw.guards,
            changed=tuple(changed),
        )


def closure_values(function: types.FunctionType) -> dict[str, Any]:
    """The closed-over variables of ``function``, by name, as they are now."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}
