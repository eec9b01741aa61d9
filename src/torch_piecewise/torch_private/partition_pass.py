"""Inductor's partitions on devices that it does not count among its GPUs.

``Scheduler.should_partition`` (2.11, 2.13) leaves whatever is not on one of its ``GPU_TYPES`` to the code
between partitions: it thinks of CUDA graphs alone. Static graphs of another device, and the recorder that
tests them on a CPU, need the same functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch._inductor import custom_graph_pass
from torch._inductor.utils import GPU_TYPES
from torch._inductor.virtualized import V

# 2.13 takes scheduler passes of this class only; 2.11 asks no class of them, and knows none for it.
_Base: Any = getattr(custom_graph_pass, "CustomSchedulerPass", custom_graph_pass.CustomGraphPass)

HOOK = "_post_fusion_custom_pass"
"""Inductor's setting for a pass over the scheduler's nodes once they are fused (2.11, 2.13)."""


def partition_patches(device_type: str) -> Mapping[str, Any]:
    """Settings with which operations on this device are put into partition functions."""
    return {} if device_type in GPU_TYPES else {HOOK: PartitionsOn(device_type)}


class PartitionsOn(_Base):  # type: ignore[misc]
    """Lets the scheduler of one graph see operations on ``device_type`` as it sees those on a GPU.

    Only where it asks what belongs into a partition: what else it knows of a GPU does not apply.
    """

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def uuid(self) -> str:
        """Part of the key of Inductor's own cache."""
        return f"torch_piecewise partitions on {self.device_type} 1"

    def __call__(self, nodes: list[Any]) -> list[Any]:
        scheduler: Any = V.graph.scheduler
        ask = scheduler.should_partition

        def should_partition(node: Any) -> str | None:
            with self._seen_as_gpu(node):
                reason: str | None = ask(node)
            return reason

        # Of this one object, which goes when the graph is compiled.
        scheduler.should_partition = should_partition
        return nodes

    @contextlib.contextmanager
    def _seen_as_gpu(self, node: Any) -> Iterator[None]:
        device = node.get_device()
        if device is None or device.type != self.device_type:
            yield
            return
        node.is_gpu = lambda: True
        try:
            yield
        finally:
            del node.is_gpu
