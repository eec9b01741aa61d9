"""Whether gradients find their way back through an op.

There is no public question; torch itself asks ``torch._C._dispatch_has_kernel_for_dispatch_key`` and
``torch._library.custom_ops.OPDEFS`` (2.11, 2.13). For an op without an answer it warns at most.
"""

from __future__ import annotations

import torch
from torch._library.custom_ops import OPDEFS

from torch_piecewise.torch_private.ops import one_overload, op_base_name, op_mutates, op_name

_TORCHS_OWN = ("aten", "prim", "prims", "inductor", "quantized")


def loses_gradients(target: object) -> bool:
    """Whether calling this op cuts gradients off without an error, not even in the backward pass."""
    name = op_base_name(target)
    if name is None or name.partition("::")[0] in _TORCHS_OWN:
        return False
    if op_mutates(target) and name in OPDEFS:
        return True  # torch.library.custom_op has formulas for returned results only
    keys = ("Autograd", "AutogradCPU", "AutogradCUDA", "CompositeImplicitAutograd")
    overload = op_name(one_overload(target))
    return not any(torch._C._dispatch_has_kernel_for_dispatch_key(overload, key) for key in keys)
