"""When and how a runner captures."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from torch_piecewise.cudagraphs.budget import GraphBudget, Spent
from torch_piecewise.cudagraphs.outputs import OutputPolicy
from torch_piecewise.errors import ConfigError


class CaptureWhen(enum.Enum):
    """When sizes are captured that were not captured by ``warmup``.

    Inside a :func:`capture_phase` every policy captures as ``ON_CALL`` does.
    """

    WARMUP = "warmup"
    """Never."""

    BETWEEN_CALLS = "between_calls"
    """When ``capture_pending`` is called; until then they run without graphs."""

    ON_CALL = "on_call"
    """In a call of that size, after ``warmups`` such calls. Each call is carried out once."""


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """How a :class:`StaticGraphRunner` captures and replays.

    Attributes:
        capture: when sizes are captured.
        warmups: calls without graphs before a size is captured, so that what happens once (loading of
            kernels, tuning, workspaces) has happened; >= 0.
        outputs: how results reach the caller.
        copy_inputs: False where callers pass dynamic inputs in the same memory each time; a call that does
            not runs without graphs, and so does one that would need padding.
        check_addresses: check on each call that tensors that are not dynamic have not moved, beyond being the
            same objects. None leaves it to the backend: on with the testing recorder, off on a GPU.
        always_check: positions of inputs that are checked so whatever ``check_addresses`` says.
        no_padding: why only calls of exactly a captured size may replay; empty where calls are padded.
        only_marked: the line asks the device for nothing outside of functions that are marked as compiled
            code or as eager; then no graph is begun before it comes to one of the former.
        budget: limits of memory and time.
        spent: what counts against them, shared by runners with one budget; None for this runner's own.

    Raises:
        ConfigError: ``warmups`` is negative.
    """

    capture: CaptureWhen = CaptureWhen.WARMUP
    warmups: int = 1
    outputs: OutputPolicy = OutputPolicy.COPY
    copy_inputs: bool = True
    check_addresses: bool | None = None
    always_check: frozenset[int] = frozenset()
    no_padding: str = ""
    only_marked: bool = False
    budget: GraphBudget = field(default_factory=GraphBudget)
    spent: Spent | None = None

    def __post_init__(self) -> None:
        if self.warmups < 0:
            raise ConfigError("The number of warm-up calls is negative", got=str(self.warmups))
