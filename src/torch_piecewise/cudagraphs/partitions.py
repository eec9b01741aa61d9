"""Compiled code that calls its capturable parts itself: each part becomes a graph, the rest runs again.

Such a call is one step of a plan. In a replay its code runs as in any other call; where it comes to a part
that was captured, the graph is replayed instead, if the part would work on the captured memory and numbers.
A tensor that came from elsewhere at capture (from an operation between two parts) has a place that it is
copied to. A part whose memory or numbers are others runs as it is: never wrong, only slower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

from torch_piecewise.cudagraphs.base import RecordsCalls, StaticGraph, StaticGraphBackend, Value

Part = Callable[[list[Any]], tuple[Any, ...]]
"""One part: takes its inputs as a list, which it empties."""


@dataclass(frozen=True)
class CapturedPart:
    """One part as it was captured.

    Attributes:
        part: what was captured.
        graph: what replays it.
        lasting: inputs by position that lay where every replay finds them, and their addresses.
        places: inputs by position that are copied to where the graph reads them.
        numbers: what else was an input, by position.
        outputs: what it returned; on the graph's memory.
        kept: what the graph reads and nobody else may be holding.
    """

    part: Part
    graph: StaticGraph
    lasting: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, torch.Tensor], ...]
    numbers: tuple[tuple[int, Any], ...]
    outputs: tuple[Any, ...]
    kept: tuple[Any, ...]

    def replay(self, part: Part, args: list[Any]) -> tuple[Any, ...] | None:
        """The results of ``part`` for these inputs; None where the graph does not hold for them."""
        if part is not self.part:
            return None
        for position, value in self.numbers:
            if args[position] != value:
                return None
        for position, address in self.lasting:
            if args[position].data_ptr() != address:
                return None
        for position, place in self.places:
            place.copy_(args[position])
        args.clear()
        self.graph.replay()
        return self.outputs


class PartCapture:
    """Captures the parts of one call in the order in which the call comes to them.

    Args:
        backend: where graphs live.
        graphs: gets every graph, finished or not.
        given: addresses of the memory that every replay finds where it is now.
        collect: free unneeded memory before the first graph.
    """

    def __init__(
        self,
        backend: StaticGraphBackend,
        graphs: list[StaticGraph],
        given: AbstractSet[int],
        *,
        collect: bool = False,
    ) -> None:
        self._backend = backend
        self._graphs = graphs
        self._collect = collect
        self.memory = set(given)
        self.parts: list[CapturedPart | None] = []

    def __call__(self, part: Part, args: list[Any]) -> tuple[Any, ...]:
        """Run one part, on real values, and capture it."""
        arriving = {at: arg for at, arg in enumerate(args) if self._arrives(arg)}
        if _cannot_be_placed(tuple(arriving.values())):
            self.parts.append(None)
            return part(args)
        weak = self._backend.weak
        numbers = tuple((at, arg) for at, arg in enumerate(args) if not isinstance(arg, torch.Tensor))
        lasting = {
            at: weak(arg)
            for at, arg in enumerate(args)
            if isinstance(arg, torch.Tensor) and at not in arriving
        }
        with self._backend.capture(collect=self._collect) as graph:
            self._graphs.append(graph)
            given = [_place(arg) if at in arriving else arg for at, arg in enumerate(args)]
            places = {at: weak(given[at]) for at in arriving}
            args.clear()  # what nobody else holds, the part may use again
            outputs = self._run(part, given)
        self._collect = False
        for at, place in places.items():
            place.copy_(arriving[at])
        graph.replay()
        made = (out for out in (*outputs, *places.values()) if isinstance(out, torch.Tensor))
        self.memory.update(memory_of(tensor) for tensor in made)
        self.parts.append(
            CapturedPart(
                part,
                graph,
                tuple((at, tensor.data_ptr()) for at, tensor in lasting.items()),
                tuple(places.items()),
                numbers,
                tuple(weak(out) if isinstance(out, torch.Tensor) else out for out in outputs),
                tuple(lasting.values()),
            )
        )
        return outputs

    def _run(self, part: Part, args: list[Any]) -> tuple[Any, ...]:
        if not isinstance(self._backend, RecordsCalls):
            return part(args)

        @functools.wraps(part)
        def call(*given: Value) -> tuple[Any, ...]:
            return part(list(given))

        given = tuple(args)
        args.clear()
        outputs: tuple[Any, ...] = self._backend.record_call(call, given, {})
        return outputs

    def _arrives(self, arg: Value) -> bool:
        """Whether a tensor lies where the next replay may not find it."""
        return isinstance(arg, torch.Tensor) and arg.numel() > 0 and memory_of(arg) not in self.memory


class PartReplay:
    """Replays captured parts in the order of their capture; one that does not hold runs as it is."""

    def __init__(self, parts: Sequence[CapturedPart | None]) -> None:
        self._parts = parts
        self._next = 0

    def __call__(self, part: Part, args: list[Any]) -> tuple[Any, ...]:
        captured = self._parts[self._next] if self._next < len(self._parts) else None
        self._next += 1
        outputs = captured.replay(part, args) if captured is not None else None
        return part(args) if outputs is None else outputs


def memory_of(tensor: torch.Tensor) -> int:
    """What identifies the memory that a tensor lies in, whatever part of it."""
    return tensor.untyped_storage().data_ptr()


def _place(tensor: torch.Tensor) -> torch.Tensor:
    # Compiled code relies on the strides that it worked out.
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _cannot_be_placed(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether copies would not relate to each other, or to themselves, as the tensors do."""
    memory = [memory_of(tensor) for tensor in tensors]
    overlaps = any(0 in tensor.stride() for tensor in tensors)
    return overlaps or len(set(memory)) < len(memory)
