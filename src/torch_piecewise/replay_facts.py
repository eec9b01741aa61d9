"""What a program knows about replaying its calls: values that are kept with it.

So a start from the store captures without a trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from torch_piecewise.cudagraphs import DynamicInput, Extent
from torch_piecewise.stitching import Stitched


@dataclass(frozen=True)
class ReplayFacts:
    """What :class:`~torch_piecewise.static_calls.StaticCalls` has to know of a program.

    Attributes:
        line: the straight line with each run of cuts as one marked step.
        key: Python over ``args`` (the graph's inputs) that reads the program's size key.
        inputs: tensors that change from call to call, by position.
        numbers: numbers among the inputs that follow the size, by position.
        outputs: what among the outputs follows the size, by position; numbers that do not, with nothing.
        count: how many inputs there are.
        names: positions of the inputs that are arguments themselves, by name.
        device: where captured work runs; None where there is no tensor.
        autocast: ``(device type, dtype)`` that autocast was on for.
        no_padding: why calls are not padded; empty where they may be.
        no_full: why a whole call cannot be one graph; empty where it can.
        refusal: why nothing can be captured; empty where it can.
        unclear: why nobody can tell what is to be padded; empty where it is clear.
        partitioned: whether the pieces hold the cuts, and call what is captured between them themselves.
    """

    line: Stitched
    key: str = "0"
    inputs: Mapping[int, DynamicInput] = field(default_factory=dict)
    numbers: Mapping[int, Extent] = field(default_factory=dict)
    outputs: Mapping[int, tuple[Extent, ...]] = field(default_factory=dict)
    count: int = 0
    names: Mapping[str, int] = field(default_factory=dict)
    device: torch.device | None = None
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    no_padding: str = ""
    no_full: str = ""
    refusal: str = ""
    unclear: str = ""
    partitioned: bool = False
