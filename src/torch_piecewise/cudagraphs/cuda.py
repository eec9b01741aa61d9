"""Static graphs on NVIDIA (and, through torch's own mapping, AMD) GPUs."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from torch_piecewise.errors import StaticGraphError
from torch_piecewise.torch_private.cudagraphs import PoolHandle, end_allocation_to_pool, tensor_at


class CUDAGraphHandle:
    """One ``torch.cuda.CUDAGraph`` of a :class:`CUDAStaticGraph`."""

    def __init__(self, graph: torch.cuda.CUDAGraph, memory: _Memory) -> None:
        self._memory = memory
        self.graph = graph
        # Called in a straight line of replays: one Python frame less each.
        self.replay = graph.replay

    def reset(self) -> None:
        """Give the graph up."""
        self._memory.users.discard(self)
        self.graph.reset()


class _Memory:
    """A memory pool of torch's allocator, and the graphs that keep it alive.

    The allocator forgets a pool when its last graph goes, and refuses captures into it from then on.
    """

    def __init__(self, handle: PoolHandle, *, given: bool) -> None:
        self.handle = handle
        self.given = given
        self.was_used = False
        self.users: weakref.WeakSet[CUDAGraphHandle] = weakref.WeakSet()
        self._segments: list[tuple[int, int]] = []
        self._is_stale = False

    def is_gone(self) -> bool:
        return self.was_used and not self.given and not self.users

    def changed(self) -> None:
        """A capture may have made the pool larger."""
        self._is_stale = True

    def bytes(self) -> int:
        self._look()
        return sum(end - start for start, end in self._segments)

    def owns(self, address: int) -> bool:
        # A live pool gives nothing back, so only a miss needs another look.
        if not self._has(address) and self._is_stale:
            self._look()
        return self._has(address)

    def _has(self, address: int) -> bool:
        return any(start <= address < end for start, end in self._segments)

    def _look(self) -> None:
        snapshot = torch.cuda.memory_snapshot(  # type: ignore[no-untyped-call]
            self.handle, include_traces=False
        )
        self._segments = [(s["address"], s["address"] + s["total_size"]) for s in snapshot]
        self._is_stale = False


class _StreamTurn:
    """A lock whose holders' streams wait for one another, as graphs of one pool must not overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.RLock()
        self._last: torch.cuda.Stream | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._follow_last_stream()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _follow_last_stream(self) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise StaticGraphError(
                "A model with static graphs of its own was called while the stream is being captured",
                expected="one capture at a time",
                hint='compile the model with cudagraph_mode="none" to capture it from outside',
            )
        stream = torch.cuda.current_stream(self._device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream


class CUDAStaticGraph:
    """A memory pool on one GPU and the CUDA graphs in it; a :class:`StaticGraphBackend`.

    Work is recorded on a stream of its own, and replayed on whatever stream the caller is on. Other threads
    may go on using the device meanwhile, with the default ``capture_error_mode``.

    After a capture that the driver refused to end (something synchronised while it ran), torch cannot use
    the memory pool for further captures. They then go to a new one; what was captured before stays usable.

    Args:
        device: None for the current one at this moment.
        pool: a handle from ``torch.cuda.graph_pool_handle()`` to share with graphs captured elsewhere, at
            least one of which has to stay alive. None for a pool of its own.
        capture_error_mode: see ``torch.cuda.graph``.
    """

    checks_addresses = False

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        pool: PoolHandle | None = None,
        capture_error_mode: str = "thread_local",
    ) -> None:
        index = torch.cuda.current_device() if device is None else torch.cuda.device(device).idx
        self._device = torch.device("cuda", index)
        self._error_mode = capture_error_mode
        self._stream: torch.cuda.Stream | None = None
        self._memory = _Memory(pool or torch.cuda.graph_pool_handle(), given=pool is not None)
        self._earlier: list[_Memory] = []
        self._broken: list[torch.cuda.CUDAGraph] = []
        self._is_capturing = False
        self._turn = _StreamTurn(self._device)
        self._at_start = self._outside_of_pools()

    @contextlib.contextmanager
    def capture(self, *, collect: bool = False) -> Iterator[CUDAGraphHandle]:
        """See :meth:`StaticGraphBackend.capture`.

        torch.cuda.graph is not used because it synchronises and empties the caches every time, and leaves
        its stream in place when a capture fails.
        """
        if self._is_capturing:
            raise StaticGraphError("A static graph was to be captured while another one is being captured")
        if collect:
            torch.cuda.synchronize(self._device)
            gc.collect()
            torch.cuda.empty_cache()
        memory = self._usable_memory()
        graph = torch.cuda.CUDAGraph()
        handle = CUDAGraphHandle(graph, memory)
        with torch.cuda.device(self._device), torch.cuda.stream(self._capture_stream()):
            self._is_capturing = True
            try:
                with self._recorded(graph, memory):
                    yield handle
            finally:
                self._is_capturing = False
                memory.changed()
        memory.users.add(handle)

    def weak(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :meth:`StaticGraphBackend.weak`."""
        plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
        if not plain or not tensor.is_cuda or not tensor.numel() or tensor.is_conj() or tensor.is_neg():
            return tensor
        if not any(memory.owns(tensor.data_ptr()) for memory in (self._memory, *self._earlier)):
            return tensor
        return tensor_at(tensor.data_ptr(), tensor, tensor.shape, tensor.stride())

    def memory_in_use(self) -> int:
        """Bytes of the pool and of what the driver keeps for the graphs.

        The driver's part can only be told as what is missing on the whole device, so it is as good as the
        other processes on the device are quiet.
        """
        own = sum(memory.bytes() for memory in (self._memory, *self._earlier))
        return own + max(0, self._outside_of_pools() - self._at_start)

    def turn(self) -> AbstractContextManager[object]:
        """A lock; a turn on another stream than the one before waits for that stream's work."""
        return self._turn

    @contextlib.contextmanager
    def _recorded(self, graph: torch.cuda.CUDAGraph, memory: _Memory) -> Iterator[None]:
        memory.was_used = True
        try:
            graph.capture_begin(pool=memory.handle, capture_error_mode=self._error_mode)
        except BaseException:
            self._abandon(graph, memory)
            raise
        try:
            yield
        except BaseException:
            try:
                graph.capture_end()
            except RuntimeError:
                # What the block raised says more than that the capture could not be ended after it.
                self._abandon(graph, memory)
            else:
                graph.reset()
            raise
        try:
            graph.capture_end()
        except BaseException as error:
            self._abandon(graph, memory)
            raise StaticGraphError(
                "The captured code did something that a CUDA graph cannot hold",
                expected="kernels and copies on the current stream, no synchronisation with the host",
                got=str(error),
                hint="let the function that does it run eagerly (torch_piecewise.cudagraphs.runs_eagerly)",
            ) from error

    def _abandon(self, graph: torch.cuda.CUDAGraph, memory: _Memory) -> None:
        end_allocation_to_pool(self._device.index, memory.handle)
        graph.reset()
        # The pinned-memory allocator may go on asking this graph whether it is capturing.
        self._broken.append(graph)
        if memory is self._memory:
            self._retire(memory)

    def _usable_memory(self) -> _Memory:
        if self._memory.is_gone():
            self._retire(self._memory)
        return self._memory

    def _retire(self, memory: _Memory) -> None:
        self._earlier = [earlier for earlier in (*self._earlier, memory) if earlier.users]
        self._memory = _Memory(torch.cuda.graph_pool_handle(), given=False)

    def _capture_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return self._stream

    def _outside_of_pools(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free - torch.cuda.memory_reserved(self._device)
