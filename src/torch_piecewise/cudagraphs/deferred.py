"""A pool on the GPU that is made when something is first captured, so that wrapping needs no GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from torch_piecewise.cudagraphs.base import StaticGraph
from torch_piecewise.cudagraphs.cuda import CUDAStaticGraph
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.torch_private.cudagraphs import PoolHandle


class DeferredCUDAStaticGraph:
    """As :class:`CUDAStaticGraph` on the device that is current when it is first used.

    Args:
        pool: as there.
    """

    checks_addresses = CUDAStaticGraph.checks_addresses

    def __init__(self, pool: PoolHandle | None = None) -> None:
        self._handle = pool
        self._made: CUDAStaticGraph | None = None
        self._lock = threading.Lock()

    def capture(self, *, collect: bool = False) -> AbstractContextManager[StaticGraph]:
        """See :meth:`StaticGraphBackend.capture`."""
        return self._backend().capture(collect=collect)

    def weak(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :meth:`StaticGraphBackend.weak`."""
        return self._backend().weak(tensor)

    def memory_in_use(self) -> int:
        """See :meth:`StaticGraphBackend.memory_in_use`."""
        return self._made.memory_in_use() if self._made is not None else 0

    def turn(self) -> AbstractContextManager[object]:
        """See :meth:`StaticGraphBackend.turn`."""
        return _Turn(self._backend)

    def _backend(self) -> CUDAStaticGraph:
        with self._lock:
            if self._made is None:
                if not torch.cuda.is_available():
                    raise StaticGraphError(
                        "A CUDA graph was to be captured, and there is no GPU that torch can use",
                        expected="a GPU, or another pool",
                        got=f"torch {torch.__version__} without one",
                        hint="call without a forward_context; or give pool=torch_piecewise.testing."
                        "GraphRecorder(), which captures and replays without a GPU; where no pool is given, "
                        "TORCH_PIECEWISE_STATIC_GRAPH_CLASS names the class",
                    )
                self._made = CUDAStaticGraph(pool=self._handle)
            return self._made


class _Turn:
    """The turn of a backend that may not be made yet."""

    def __init__(self, backend: Callable[[], CUDAStaticGraph]) -> None:
        self._backend = backend

    def __enter__(self) -> None:
        self._backend().turn().__enter__()

    def __exit__(self, *exception: object) -> None:
        self._backend().turn().__exit__(None, None, None)
