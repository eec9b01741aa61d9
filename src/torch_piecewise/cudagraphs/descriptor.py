"""What is known about a batch when it is decided what serves it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch_piecewise.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchDescriptor:
    """One kind of batch: the key under which a static graph is kept.

    Attributes:
        num_tokens: size of the dispatch dim, >= 0.
        num_reqs: how many requests the tokens belong to; None where that does not matter.
        uniform: whether every request has the same number of tokens (a decode step).
        has_lora: whether any adapter is active.
        num_active_loras: how many different ones; 0 without any.
    """

    num_tokens: int
    num_reqs: int | None = None
    uniform: bool = False
    has_lora: bool = False
    num_active_loras: int = 0

    def __post_init__(self) -> None:
        if self.num_tokens < 0 or (self.num_reqs or 0) < 0 or self.num_active_loras < 0:
            raise ConfigError("A batch descriptor has a negative count", got=str(self))
        if self.num_active_loras and not self.has_lora:
            raise ConfigError(
                "A batch descriptor counts adapters it says it does not have",
                expected="has_lora=True when num_active_loras > 0",
                got=str(self),
            )

    def relaxed(self) -> BatchDescriptor:
        """The same batch without what only a graph of the whole call depends on."""
        return replace(self, num_reqs=None, uniform=False)
