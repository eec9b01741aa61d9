"""Private names of Inductor that the pass manager needs.

Apart from ``torch_private.passes`` because importing this module imports ``torch._inductor`` and
``torch._dynamo``, which takes about a second.
"""

from __future__ import annotations

import torch._dynamo.backends.registry  # noqa: F401 - first, as torch.compile does on other threads
import torch._inductor.custom_graph_pass as _custom_graph_pass

# Inductor keeps a graph compiled with a custom pass only if the pass is an instance of this class, and
# puts what its uuid() returns into the key. There is no public name for it. 2.11 to 2.13.
from torch._inductor.custom_graph_pass import CustomGraphPass as InductorGraphPass

__all__ = ["InductorGraphPass", "wants_is_inference"]


def wants_is_inference(candidate: object) -> bool:
    """Whether Inductor would call this pass with an extra ``is_inference`` argument (2.13; not in 2.11)."""
    aware = getattr(_custom_graph_pass, "CustomInferenceAwareGraphPass", None)
    return aware is not None and isinstance(candidate, aware)
