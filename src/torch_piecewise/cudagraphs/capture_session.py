"""One capture in progress: what is recorded, what runs eagerly in between, the steps of its plan so far."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch

from torch_piecewise.cudagraphs.base import RecordsCalls, StaticGraph, StaticGraphBackend, Value
from torch_piecewise.cudagraphs.capture_failed import CaptureFailed, capture_failed
from torch_piecewise.cudagraphs.partitions import PartCapture, PartReplay, memory_of
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.torch_private.cudagraphs import flatten, unflatten
from torch_piecewise.torch_private.partitions import Partitioned, partitions_through

R = TypeVar("R")


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
            assert isinstance(leaf, torch.Tensor)
            if leaf.data_ptr() != place.data_ptr():
                place.copy_(leaf)

    def _compare(self, got: object, captured: object) -> None:
        if got != captured:
            name = getattr(self._fn, "__qualname__", repr(self._fn))
            raise StaticGraphError(
                f"{name} runs eagerly between static graphs and returned something else than at capture",
                expected=str(captured),
                got=str(got),
                hint="what it returns besides tensors, and their shapes, are fixed for a captured size",
            )


class Session:
    """One capture in progress: the graph that is open, and the steps so far."""

    def __init__(
        self, backend: StaticGraphBackend, *, captures_cuts: bool, collect: bool, only_marked: bool
    ) -> None:
        self.backend = backend
        self.captures_cuts = captures_cuts
        self.steps: list[Callable[[], object]] = []
        self.graphs: list[StaticGraph] = []
        self.compiled: list[Callable[..., Any]] = []
        self._collect = collect
        self._only_marked = only_marked
        self._open: AbstractContextManager[StaticGraph] | None = None
        self._eager: _EagerStep | None = None
        self._arriving: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._failed: str | None = None

    def go_on(self) -> None:
        """Begin a graph, unless that waits for compiled code."""
        if not self._only_marked:
            self._begin()

    def _begin(self) -> None:
        with self._device_fails():
            context = self.backend.capture(collect=self._collect)
            self._collect = False
            self.graphs.append(context.__enter__())
        self._open = context

    def end(self) -> None:
        if self._open is None:
            return
        context, self._open = self._open, None
        with self._device_fails():
            context.__exit__(None, None, None)
        self._settle_arrivals()
        self.steps.append(self.graphs[-1].replay)
        self.graphs[-1].replay()

    @contextlib.contextmanager
    def _device_fails(self) -> Iterator[None]:
        """What is raised here comes from the device's class, not from the captured code."""
        try:
            yield
        except StaticGraphError:
            raise
        except Exception as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> CaptureFailed:
        """``error`` as a capture that failed."""
        failed = capture_failed(error)
        failed.has_run = any(isinstance(step, _EagerStep) for step in self.steps)
        return failed

    def plan_steps(self) -> tuple[Callable[[], object], ...]:
        """What a replay does, each step without arguments."""
        return tuple(step.bound() if isinstance(step, _EagerStep) else step for step in self.steps)

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

    def run_opaquely(self, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        self.compiled.append(fn)
        if self._open is None:
            self._begin()
        if not isinstance(self.backend, RecordsCalls):
            return fn(*args, **kwargs)
        return cast(R, self.backend.record_call(fn, args, kwargs))

    def run_eagerly(self, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        self.end()
        weak_args, weak_kwargs = map_tensors(self.backend.weak, (args, kwargs))
        result = self._outside(fn, args, kwargs)
        return self._after(_EagerStep(fn, weak_args, weak_kwargs), result, _memories((args, kwargs)))

    def run_in_parts(self, fn: Partitioned, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Run code that calls its parts itself; each becomes a graph, and the call one step."""
        self.end()
        given = _memories(args)
        capture = PartCapture(self.backend, self.graphs, given, collect=self._collect)
        self._collect = False
        weak_args = map_tensors(self.backend.weak, args)
        with partitions_through(capture):
            result = self._outside(fn, args, {})
        parts = tuple(capture.parts)

        def again(*args: Value) -> tuple[Any, ...]:
            with partitions_through(PartReplay(parts)):
                return fn(*args)

        return self._after(_EagerStep(again, weak_args, {}), result, given, capture.memory)

    def _outside(self, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        token = SESSION.set(None)
        try:
            return fn(*args, **kwargs)
        except BaseException:
            self._failed = getattr(fn, "__qualname__", repr(fn))
            raise
        finally:
            SESSION.reset(token)

    def _after(
        self, step: _EagerStep, result: R, given: AbstractSet[int], made: AbstractSet[int] = frozenset()
    ) -> R:
        self._eager = step
        self.steps.append(step)
        self.go_on()
        placed = cast(R, self._placed(result, given, made))
        if self._open is None:
            self._settle_arrivals()
        return placed

    def _placed(self, result: Value, given: AbstractSet[int], made: AbstractSet[int]) -> Value:
        """``result`` with its new tensors replaced by places in the pool, where replays will put them.

        A place is made inside the next graph's capture, so that its memory can be used again later on; what
        belongs there can be put there only once that capture is over.

        Args:
            given: memory of the arguments; what lies there stays there.
            made: memory that the step's own graphs fill.
        """
        leaves, spec = flatten(result)
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor) and leaf.numel() and memory_of(leaf) not in given:
                if memory_of(leaf) not in made:
                    with torch.inference_mode(False), torch.no_grad():
                        leaves[position] = torch.empty_like(leaf, requires_grad=False)
                    self._arriving.append((leaves[position], leaf))
                self._expect(position, leaves[position])
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


SESSION: ContextVar[Session | None] = ContextVar("torch_piecewise_capture", default=None)


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], tree: Value) -> Value:
    """``tree`` with each tensor changed."""
    leaves, spec = flatten(tree)
    return unflatten([change(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)


def _memories(tree: Value) -> frozenset[int]:
    return frozenset(memory_of(leaf) for leaf in flatten(tree)[0] if isinstance(leaf, torch.Tensor))
