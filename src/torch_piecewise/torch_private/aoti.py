"""Start what AOTInductor compiled; needs nothing of Inductor or Dynamo.

``torch._C._aoti`` holds the runners (2.11 and 2.13). torch's public door, ``torch._inductor.
aoti_load_package``, imports Inductor and wraps every call in pytrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Run = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


def aoti_runner(shared_object: Path, device: str) -> Run:
    """The function inside a shared object: takes a sequence of tensors, returns a list of tensors.

    The file may be deleted once this returns: it stays mapped.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        RuntimeError: it cannot be loaded on this machine.
    """
    # One instance of the model: calls from several threads take turns.
    name = "AOTIModelContainerRunnerCpu" if device == "cpu" else "AOTIModelContainerRunnerCuda"
    maker: Any = getattr(torch._C._aoti, name)
    run: Run = maker(str(shared_object), 1).run
    return run
