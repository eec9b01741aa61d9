"""Static graphs without a GPU: records tensor operations on the CPU and does them again.

What a GPU graph does to a program, :class:`GraphRecorder` does too, so that mistakes show in tests:

* while recording, nothing is carried out: afterwards inputs are as they were and results are garbage;
* a replay works on the recorded *addresses*: a tensor passed anew is not seen, Python code around the
  operations does not run again, numbers read from Python stay what they were;
* results lie in a pool whose memory is used again as soon as no tensor holds it, by later recordings too;
* reading a value back to the host (``item``, ``nonzero``) while recording is refused.

One thing is better than on a GPU: when memory that was recorded as an input has been freed, the replay
raises instead of reading whatever lies there now.

Custom operators are looked into. Compiled code cannot be (its kernels call no operator), so it has to be
called through :func:`torch_piecewise.cudagraphs.opaque_call`, and then counts as one operation whose
Python part does run again.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from torch_piecewise.cudagraphs.base import Value
from torch_piecewise.cudagraphs.recorder_pool import RecorderPool
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.torch_private.cudagraphs import (
    MemoryWatch,
    OperatorMode,
    OpOverload,
    flatten,
    run_cpu_kernel,
    tensor_at,
    unflatten,
    written_tensors,
)

_BUILT_IN = frozenset({"aten", "prims", "prim"})
_HOST_METHODS = frozenset(
    (
        *("__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__", "__dlpack__"),
        *("is_nonzero", "item", "tolist", "numpy", "__repr__", "__format__"),
    )
)
"""Methods and functions that read values for Python; some of them, or in inference mode, call no operator."""
_HOST_READS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


@dataclass(frozen=True)
class _Operation:
    """One recorded operation on fixed addresses; ``results`` says where each fresh result goes."""

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[tuple[int, torch.Tensor], ...]

    def run(self) -> None:
        leaves = flatten(self.fn(*self.args, **self.kwargs))[0]
        for position, place in self.results:
            if leaves[position].shape != place.shape:
                raise StaticGraphError(
                    f"{self.name} gave a result of another shape in a replay",
                    expected=str(tuple(place.shape)),
                    got=str(tuple(leaves[position].shape)),
                )
            place.copy_(leaves[position])


class Recording:
    """What :meth:`GraphRecorder.capture` yields: a :class:`StaticGraph` on the CPU."""

    def __init__(self, pool: RecorderPool, on_replay: Callable[[], None]) -> None:
        self._pool = pool
        self._on_replay = on_replay
        self._operations: list[_Operation] = []
        self._watched: dict[int, tuple[MemoryWatch, str]] = {}
        self._constants: list[torch.Tensor] = []
        self._is_reset = False

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the recorded operations, in order."""
        return tuple(operation.name for operation in self._operations)

    def replay(self) -> None:
        """Do the operations again.

        Raises:
            StaticGraphError: the recording was given up, or memory it reads no longer exists.
        """
        if self._is_reset:
            raise StaticGraphError("A static graph was replayed after it had been given up")
        for memory, name in self._watched.values():
            if memory.is_gone():
                raise StaticGraphError(
                    f"Memory that {name} works on has been freed since it was captured",
                    hint="keep the tensors a graph was captured with, or capture again",
                )
        self._on_replay()
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            for operation in self._operations:
                operation.run()

    def reset(self) -> None:
        """Forget the operations."""
        self._is_reset = True
        self._operations.clear()
        self._watched.clear()
        self._constants.clear()
        self._pool.graphs.discard(self)

    def hold_constant(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of ``tensor`` that lives as long as this recording."""
        self._constants.append(tensor.clone())
        return self._constants[-1]

    def add(
        self,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: list[tuple[int, torch.Tensor]],
    ) -> None:
        """Record ``fn`` on the addresses that ``args``, ``kwargs`` and ``results`` have now."""
        leaves, spec = flatten((args, kwargs))
        fixed = [self._fixed(leaf, name) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        fixed_args, fixed_kwargs = unflatten(fixed, spec)
        places = tuple((position, self._fixed(place, name)) for position, place in results)
        self._operations.append(_Operation(name, fn, fixed_args, fixed_kwargs, places))

    def _fixed(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        if tensor.layout is not torch.strided or tensor.is_neg():
            raise StaticGraphError(
                f"The recorder cannot hold an argument of {name}",
                expected="a strided tensor",
                got=f"{type(tensor).__name__} of layout {tensor.layout}",
            )
        if tensor.numel() == 0:
            return tensor.detach()
        storage = tensor.untyped_storage()
        if not self._pool.owns(tensor):
            self._watched.setdefault(storage.data_ptr(), (MemoryWatch(tensor), name))
        fixed = tensor_at(tensor.data_ptr(), tensor, tensor.shape, tensor.stride())
        return fixed.conj() if tensor.is_conj() else fixed


class _RecordMode(OperatorMode):  # type: ignore[no-untyped-call]
    """Runs each operation so that Python sees right shapes, moves results to the pool, and takes notes."""

    def __init__(self, recording: Recording, pool: RecorderPool) -> None:
        super().__init__()
        self._recording = recording
        self._pool = pool
        self._seen = 0
        self.watches_reads = True
        # What lay there before: an eager step, or a step still to be replayed, may have use for it.
        self._own: dict[int, torch.Tensor | None] = {}
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        self._seen += 1
        if _reads_on_host(op, args, kwargs):
            raise _host_read(str(op))
        written = written_tensors(op, args, kwargs)
        self._remember(written)
        if op.namespace in _BUILT_IN:
            return self._note(op, args, kwargs, op(*args, **kwargs), bool(written))
        seen = self._seen
        with self:
            result = run_cpu_kernel(op, args, kwargs)
        looked_inside = self._seen > seen
        return result if looked_inside else self._note(op, args, kwargs, result, bool(written))

    def record_call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        leaves = flatten((args, kwargs))[0]
        with self.suspended(), self.unwatched():
            # Nobody knows what compiled code writes.
            self._remember([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
            return self._note(_as_now(fn), args, kwargs, fn(*args, **kwargs), True)

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Let a block read values: its Python part runs again in each replay."""
        before, self.watches_reads = self.watches_reads, False
        try:
            yield
        finally:
            self.watches_reads = before

    def undo(self) -> None:
        """Make it so that nothing was carried out: memory as it was, results on new memory garbage."""
        for memory, before, _ in self._before.values():
            memory.copy_(before)
        self._pool.put_back(self._own)

    def _remember(self, written: list[torch.Tensor]) -> None:
        for tensor in written:
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address in self._own or address in self._before or not storage.nbytes():
                continue
            like = torch.empty(0, dtype=torch.uint8)
            memory = tensor_at(address, like, (storage.nbytes(),), (1,))
            self._before[address] = (memory, memory.clone(), tensor)

    def _note(
        self, fn: Value, args: tuple[Any, ...], kwargs: dict[str, Any], result: Value, writes: bool
    ) -> Value:
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in flatten((args, kwargs))[0]
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
        }
        if fn is torch.ops.aten.lift_fresh.default:
            return self._recording.hold_constant(result)
        leaves, spec = flatten(result)
        moved: list[tuple[int, torch.Tensor]] = []
        for position, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor) or not leaf.numel():
                continue
            if leaf.untyped_storage().data_ptr() not in given:
                leaves[position] = self._moved(leaf)
                moved.append((position, leaves[position]))
        if not moved and not writes:
            return result
        name = _name(fn)
        if name.startswith(("aten.empty", "aten.new_empty")):
            for _, place in moved:
                place.zero_()
        else:
            self._recording.add(name, fn, args, kwargs, moved)
        return unflatten(leaves, spec) if moved else result

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        place = self._pool.empty_like(tensor)
        address = place.untyped_storage().data_ptr()
        if address not in self._own:
            self._own[address] = self._pool.content(address)
        return place.copy_(tensor)


class GraphRecorder:
    """A :class:`~torch_piecewise.cudagraphs.StaticGraphBackend` that needs no GPU, for tests.

    Attributes:
        captures: how many recordings were completed.
        replays: how many times one of them was replayed.
    """

    checks_addresses = True

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0
        self._pool = RecorderPool()
        self._lock = threading.RLock()
        self._mode: _RecordMode | None = None

    @contextlib.contextmanager
    def capture(self, *, collect: bool = False) -> Iterator[Recording]:
        """Record the operations of the block; ``collect`` means nothing here."""
        if self._mode is not None:
            raise StaticGraphError("A static graph was to be captured while another one is being captured")
        recording = Recording(self._pool, self._count_replay)
        self._mode = mode = _RecordMode(recording, self._pool)
        self._pool.begin(recording)
        try:
            with _HostReads(mode), mode:
                yield recording
        except BaseException:
            recording.reset()
            raise
        finally:
            self._mode = None
            mode.undo()
        self.captures += 1

    def record_call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Record a call of compiled code as one operation."""
        return fn(*args, **kwargs) if self._mode is None else self._mode.record_call(fn, args, kwargs)

    def weak(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :meth:`StaticGraphBackend.weak`."""
        if not tensor.numel() or not self._pool.owns(tensor):
            return tensor
        return tensor_at(tensor.data_ptr(), tensor, tensor.shape, tensor.stride())

    def memory_in_use(self) -> int:
        """Bytes of the pool; it shrinks only when the last recording is given up, as on a GPU."""
        return self._pool.bytes_in_use()

    def turn(self) -> AbstractContextManager[object]:
        """A lock: one thread at a time."""
        return self._lock

    def _count_replay(self) -> None:
        self.replays += 1


def _as_now(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` under the autocast of now: the Python part of compiled code runs again in a replay."""
    if not torch.is_autocast_enabled("cpu"):
        return fn
    dtype = torch.get_autocast_dtype("cpu")

    @functools.wraps(fn)
    def run(*args: Value, **kwargs: Value) -> Value:
        with torch.autocast("cpu", dtype):
            return fn(*args, **kwargs)

    return run


class _HostReads(TorchFunctionMode):
    """Refuses what reads values back without an operator: ``bool(t)``, ``t.tolist()``, ``t.numpy()``."""

    def __init__(self, recording: _RecordMode) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self, func: Value, types: Value, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Value:
        name = getattr(func, "__name__", "")
        if self._recording.watches_reads and name in _HOST_METHODS:
            raise _host_read(f"Tensor.{name}")
        return func(*args, **(kwargs or {}))


def _host_read(name: str) -> StaticGraphError:
    return StaticGraphError(
        f"{name} was called while a static graph was being captured",
        expected="operations whose results stay on the device and have a fixed shape",
        hint="let the function that calls it run eagerly, or keep it out of the captured part",
    )


def _name(fn: Value) -> str:
    return str(fn) if isinstance(fn, OpOverload) else getattr(fn, "__qualname__", repr(fn))


def _reads_on_host(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if not _HOST_READS.intersection(op.tags):
        return False
    if op is torch.ops.aten.index.Tensor:
        # Its result has a fixed shape unless it picks by truth values.
        picks = [index.dtype for index in args[1] if index is not None]
        return torch.bool in picks or torch.uint8 in picks
    return not (op is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None)
