"""The same model as others run it: transformers, eager and under plain ``torch.compile``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_piecewise.demo.base import DemoError
from torch_piecewise.demo.generate import Step


def load_transformers(folder: Path) -> Any:
    """Transformers' own ``LlamaForCausalLM`` in float32.

    Raises:
        DemoError: transformers is not installed.
    """
    try:
        from transformers import LlamaForCausalLM
    except ImportError as error:
        raise DemoError(
            "There is nothing to compare with",
            expected="transformers",
            got=str(error),
            hint="pip install transformers",
        ) from error
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def growing_cache(model: Any) -> Step:
    """Eager, with a cache that is concatenated to: what ``model.generate`` does by default."""
    from transformers import DynamicCache

    return _with_cache(model, model, lambda: DynamicCache(config=model.config))


def static_cache(model: Any, *, capacity: int) -> Step:
    """Eager, with a cache of fixed size and masks over it."""
    from transformers import StaticCache

    return _with_cache(model, model, lambda: StaticCache(config=model.config, max_cache_len=capacity))


def compiled_static_cache(model: Any, *, capacity: int) -> Step:
    """Plain ``torch.compile`` of decode steps over a cache of fixed size; prefill stays eager."""
    from transformers import StaticCache

    compiled = torch.compile(model.forward, dynamic=False)
    return _with_cache(model, compiled, lambda: StaticCache(config=model.config, max_cache_len=capacity))


def _with_cache(prefill: Any, decode: Any, new_cache: Any) -> Step:
    cache: Any = None

    def step(input_ids: Tensor, past: int) -> Tensor:
        nonlocal cache
        if past == 0:
            cache = new_cache()
        n = input_ids.shape[0]
        forward = decode if n == 1 else prefill
        result = forward(
            input_ids=input_ids[None],
            past_key_values=cache,
            position_ids=torch.arange(past, past + n)[None],
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = result.logits[0, -1]
        return logits

    return step
