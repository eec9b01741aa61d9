"""Capture that can be interrupted: functions marked here run eagerly between static graphs.

``capture_plan(fn, backend)`` calls ``fn`` once. Whenever ``fn`` comes to a marked function, the graph being
recorded is closed and replayed, the marked function runs on real values, and the next graph is begun. So a
captured call computes the right results and does each of its side effects once, like any other call, and
what it went through is the plan for the calls to come.

Three marks; each one costs a look-up of a context variable outside of a capture:

* :func:`runs_eagerly`: always eager, during capture and replay. For users.
* :func:`cut_step`: eager when pieces are captured, part of the graph when the whole call is. For cuts.
* :func:`opaque_call`: compiled code; the same to a GPU, but one operation to a recorder of operations.

In a replay a marked function gets the arguments it got at capture: the same memory, and the same numbers.
Tensors it returns are copied to where the next graph looks for them; one that it returns as it was given
stays where it is, so memory that captured code is to write into (a cache) goes in as an argument, not out
as a result. It may read anything else it likes, but what it keeps of its arguments for later it has to copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

import torch

from torch_piecewise.cudagraphs.base import RecordsCalls, StaticGraph, StaticGraphBackend, Value
from torch_piecewise.cudagraphs.plan import ReplayPlan
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.torch_private.cudagraphs import flatten, unflatten

P = ParamSpec("P")
R = TypeVar("R")


def runs_eagerly(fn: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that runs eagerly during capture and replay, whatever the mode."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        session = _SESSION.get()
        return fn(*args, **kwargs) if session is None else session.run_eagerly(fn, args, kwargs)

    return call


def cut_step(fn: Callable[P, R]) -> Callable[P, R]:
    """Mark a cut: eager between captured pieces, captured itself when the whole call is."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        session = _SESSION.get()
        if session is None or session.captures_cuts:
            return fn(*args, **kwargs)
        return session.run_eagerly(fn, args, kwargs)

    return call


def opaque_call(fn: Callable[P, R]) -> Callable[P, R]:
    """Mark compiled code, whose kernels a recorder of operations cannot see."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        session = _SESSION.get()
        if session is None or not isinstance(session.backend, RecordsCalls):
            return fn(*args, **kwargs)
        return cast(R, session.backend.record_call(fn, args, kwargs))

    return call


def capture_in_progress() -> bool:
    """Whether this thread or task is inside :func:`capture_plan`, and not in an eager part of it."""
    return _SESSION.get() is not None


def capture_plan(
    fn: Callable[[], Any],
    backend: StaticGraphBackend,
    *,
    captures_cuts: bool = False,
    collect: bool = False,
    weak_outputs: bool = True,
) -> ReplayPlan:
    """Call ``fn`` once and return the plan that does the same again.

    Args:
        captures_cuts: whether functions marked with :func:`cut_step` become part of the graphs.
        collect: free unneeded memory before the first graph.
        weak_outputs: let later captures use the outputs' memory; then they are right only until the next
            replay of anything in the pool.

    Returns:
        The plan; its outputs hold the results of this call.

    Raises:
        StaticGraphError: a capture is in progress, a marked function failed and ``fn`` went on, or the
            outputs want gradients. Whatever ``fn`` raises comes through. Nothing stays captured then.
    """
    if capture_in_progress():
        raise StaticGraphError("A static graph was to be captured while another one is being captured")
    session = _Session(backend, captures_cuts=captures_cuts, collect=collect)
    token = _SESSION.set(session)
    try:
        session.begin()
        outputs = fn()
        session.end()
        session.check()
        _refuse_gradients(outputs)
    except BaseException as error:
        session.abort(error)
        raise
    finally:
        _SESSION.reset(token)
    if weak_outputs:
        outputs = _map_tensors(backend.weak, outputs)
    steps = (step.bound() if isinstance(step, _EagerStep) else step for step in session.steps)
    return ReplayPlan(tuple(steps), tuple(session.graphs), outputs)


class _EagerStep:
    """One eager body in a plan: calls it, and puts its tensors where they are expected."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self.expected: list[tuple[int, Any]] = []

    def bound(self) -> Callable[[], object]:
        """The step as a plan does it: the body itself where nothing has to be put anywhere."""
        return self if self.expected else functools.partial(self._fn, *self._args, **self._kwargs)

    def __call__(self) -> None:
        result = self._fn(*self._args, **self._kwargs)
        leaves = [result] if isinstance(result, torch.Tensor) else flatten(result)[0]
        for position, place in self.expected:
            leaf = leaves[position] if position < len(leaves) else None
            if not isinstance(place, torch.Tensor):
                self._compare(leaf, place)
                continue
            if not isinstance(leaf, torch.Tensor) or leaf.shape != place.shape:
                self._compare(getattr(leaf, "shape", leaf), place.shape)
            place.copy_(cast(torch.Tensor, leaf))

    def _compare(self, got: object, captured: object) -> None:
        if got != captured:
            name = getattr(self._fn, "__qualname__", repr(self._fn))
            raise StaticGraphError(
                f"{name} runs eagerly between static graphs and returned something else than at capture",
                expected=str(captured),
                got=str(got),
                hint="what it returns besides tensors, and their shapes, are fixed for a captured size",
            )


class _Session:
    """One capture in progress: the graph that is open, and the steps so far."""

    def __init__(self, backend: StaticGraphBackend, *, captures_cuts: bool, collect: bool) -> None:
        self.backend = backend
        self.captures_cuts = captures_cuts
        self.steps: list[Callable[[], object]] = []
        self.graphs: list[StaticGraph] = []
        self._collect = collect
        self._open: AbstractContextManager[StaticGraph] | None = None
        self._eager: _EagerStep | None = None
        self._arriving: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._failed: str | None = None

    def begin(self) -> None:
        context = self.backend.capture(collect=self._collect)
        self._collect = False
        self.graphs.append(context.__enter__())
        self._open = context

    def end(self) -> None:
        if self._open is None:
            return
        context, self._open = self._open, None
        context.__exit__(None, None, None)
        self._settle_arrivals()
        self.steps.append(self.graphs[-1].replay)
        self.graphs[-1].replay()

    def check(self) -> None:
        if self._failed is not None:
            raise StaticGraphError(
                f"{self._failed} failed during a capture, and the captured code went on without it",
                hint="let the exception through, or catch it inside the function that runs eagerly",
            )

    def abort(self, error: BaseException) -> None:
        context, self._open = self._open, None
        if context is not None:
            try:
                context.__exit__(type(error), error, error.__traceback__)
            except BaseException as second:  # noqa: BLE001 - the first error is the one to tell
                if second is not error:
                    error.add_note(f"The capture could not be ended in order: {second}")
        for graph in self.graphs:
            graph.reset()

    def run_eagerly(self, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        self.end()
        weak_args, weak_kwargs = _map_tensors(self.backend.weak, (args, kwargs))
        token = _SESSION.set(None)
        try:
            result = fn(*args, **kwargs)
        except BaseException:
            self._failed = getattr(fn, "__qualname__", repr(fn))
            raise
        finally:
            _SESSION.reset(token)
        self._eager = _EagerStep(fn, weak_args, weak_kwargs)
        self.steps.append(self._eager)
        self.begin()
        return cast(R, self._placed(result, args, kwargs))

    def _placed(self, result: Value, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """``result`` with its new tensors replaced by places in the pool, where replays will put them.

        A place is made inside the next graph's capture, so that its memory can be used again later on; what
        belongs there can be put there only once that capture is over.
        """
        given = {_memory(leaf) for leaf in flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)}
        leaves, spec = flatten(result)
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor) and leaf.numel() and _memory(leaf) not in given:
                with torch.inference_mode(False), torch.no_grad():
                    place = torch.empty_like(leaf, requires_grad=False)
                self._arriving.append((place, leaf))
                leaves[position] = place
                self._expect(position, place)
            elif isinstance(leaf, int | float | bool | str):
                self._expect(position, leaf)
        return unflatten(leaves, spec)

    def _expect(self, position: int, value: Value) -> None:
        assert self._eager is not None
        self._eager.expected.append((position, value))

    def _settle_arrivals(self) -> None:
        if self._eager is None:
            return
        with torch.no_grad():
            for place, leaf in self._arriving:
                place.copy_(leaf)
        self._arriving.clear()
        self._eager.expected = [
            (position, self.backend.weak(value) if isinstance(value, torch.Tensor) else value)
            for position, value in self._eager.expected
        ]
        self._eager = None


_SESSION: ContextVar[_Session | None] = ContextVar("torch_piecewise_capture", default=None)


def _map_tensors(change: Callable[[torch.Tensor], torch.Tensor], tree: Value) -> Value:
    leaves, spec = flatten(tree)
    return unflatten([change(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _refuse_gradients(outputs: object) -> None:
    if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in flatten(outputs)[0]):
        raise StaticGraphError(
            "A captured call returned a tensor that wants gradients",
            expected="inference: nothing is differentiated through a static graph",
            hint="call the model under torch.no_grad() or torch.inference_mode()",
        )
