"""Decoder-only models of transformers in pieces, ``generate()`` included.

::

    from torch_piecewise.integrations.transformers import compile_causal_lm

    model = AutoModelForCausalLM.from_pretrained(...)
    compile_causal_lm(model)
    model.generate(...)                 # as ever
    tp.program_of(model).restore()      # as it was
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from torch_piecewise.compiled import CompiledCall
from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError
from torch_piecewise.integrations.attention_cut import (
    AttentionCall,
    attention,
    attention_call,
    traced_attention,
)
from torch_piecewise.integrations.attention_plan import CutPlan
from torch_piecewise.integrations.reserved_cache import reserve
from torch_piecewise.torch_private import modules

logger = logging.getLogger("torch_piecewise")

NAME = "torch_piecewise"
"""What ``config._attn_implementation`` says while a model is compiled."""

_NOT_FOR_ATTENTION = frozenset(
    (
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    )
)
_KEPT_OUTSIDE = frozenset(("past_key_values", "attention_mask", "use_cache", "return_dict", "position_ids"))
_DYNAMIC = ("input_ids", "inputs_embeds", "position_ids")


def compile_causal_lm(
    model: PreTrainedModel,
    *,
    max_length: int | None = None,
    config: Config | None = None,
    tag: str | None = None,
    **fields: Any,
) -> PreTrainedModel:
    """Compile a decoder-only transformers model in place, its attention and cache update as the cuts.

    Any length and any batch run through one program, with any cache that transformers has for the model. What
    a program cannot serve runs as it would uncompiled: gradients, a loss, attention weights.

    Args:
        model: a ``...ForCausalLM`` whose attention goes through transformers' attention interface.
        max_length: positions for which a growing cache reserves memory, so that a step copies none of what it
            holds; longer sequences still work. None: caches stay as they come.
        config: settings; ``fields`` override it. Ranges and sizes are about the length of a call;
            ``splitting_ops`` add cuts; ``dynamic_arg_dims`` and ``dispatch_on`` are set here.
        tag: names this model in the store and in logs.

    Returns:
        ``model``. ``tp.program_of(model)`` is its handle; its ``restore()`` undoes everything.

    Raises:
        ConfigError: the model cannot be compiled this way, with the reason.
    """
    settings = _settings(model, config, fields)
    plan = CutPlan.of(model)
    call = CausalLMCall(model, plan, settings, tag, max_length)
    AttentionInterface.register(NAME, _attention)
    plan.set_attention(NAME)
    modules.set_compiled_call(model, call)
    return model


class CausalLMCall:
    """What runs instead of a compiled model's own call: makes the masks, sets the scene, runs the program.

    Attributes:
        compiled_call: the handle.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: CutPlan,
        settings: Config,
        tag: str | None,
        max_length: int | None,
    ) -> None:
        self._model = model
        self._plan = plan
        self._max_length = max_length
        self._told = False
        self._read: dict[str, dict[str, Any]] = {}
        self._forward = model.forward
        self._signature = inspect.signature(model.forward)
        kinds = ((name, one.kind) for name, one in self._signature.parameters.items())
        self._others = next((name for name, kind in kinds if kind is inspect.Parameter.VAR_KEYWORD), "")
        traced = modules.traceable_call(model)
        self.compiled_call = CompiledCall(
            traced, model, settings, traced, on_restore=self._restore, declared=model.forward, tag=tag
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own call."""
        try:
            given = self._signature.bind(*args, **kwargs).arguments
        except TypeError:
            return self._forward(*args, **kwargs)  # the model refuses a call in its own words
        given |= given.pop(self._others, {})
        inputs = given.get("input_ids")
        if inputs is None:
            inputs = given.get("inputs_embeds")
        if inputs is None:
            return self._forward(*args, **kwargs)
        cache = self._cache(given)
        scene = self._scene(given, inputs, cache)
        as_tuple = not self._asked(given, "return_dict")
        served = self._served(given)
        kept = self._sliced_after(given, inputs) if served else 0
        arguments = self._arguments(given, inputs, cache)
        if kept:
            arguments.pop("logits_to_keep", None)
        run = self.compiled_call if served else modules.traceable_call(self._model)
        with attention_call(scene):
            result = run(**arguments)
        if cache is not None:
            result.past_key_values = cache
        if kept:
            result.logits = result.logits[:, -kept:]
        return result.to_tuple() if as_tuple else result

    def _asked(self, given: Mapping[str, Any], name: str) -> bool:
        value = given.get(name)
        return bool(getattr(self._model.config, name, False) if value is None else value)

    def _cache(self, given: Mapping[str, Any]) -> Any:
        cache = given.get("past_key_values")
        if cache is None and self._asked(given, "use_cache"):
            cache = DynamicCache(config=self._plan.config)
        if self._max_length is not None:
            reserve(cache, self._max_length)
        return cache

    def _scene(self, given: Mapping[str, Any], inputs: Tensor, cache: Any) -> AttentionCall:
        mask: Any = given.get("attention_mask")
        if not isinstance(mask, dict):
            batch, length = inputs.shape[:2]
            mask = self._plan.make_masks(
                config=self._plan.config,
                # Only its sizes, kind and place are looked at.
                inputs_embeds=torch.empty((batch, length, 0), dtype=self._model.dtype, device=inputs.device),
                attention_mask=mask,
                past_key_values=cache,
                position_ids=given.get("position_ids"),
            )
        by_type: dict[str, Tensor | None] = mask if isinstance(mask, dict) else {}
        types = self._plan.layer_types
        return AttentionCall(
            layers=self._plan.layers,
            attend=self._plan.attend,
            masks={layer: by_type[kind] for layer, kind in types.items()} if by_type else {},
            mask=None if by_type else mask,
            cache=cache,
            read=self._read,
        )

    def _arguments(self, given: Mapping[str, Any], inputs: Tensor, cache: Any) -> dict[str, Any]:
        """What the program gets: one call said in several ways comes out as one, and has one trace."""
        arguments = {
            name: value
            for name, value in given.items()
            if name not in _KEPT_OUTSIDE and value is not self._default(name)
        }
        positions = given.get("position_ids")
        if "position_ids" in self._signature.parameters:
            batch, length = inputs.shape[:2]
            if positions is None:
                start = int(cache.get_seq_length()) if cache is not None else 0
                positions = torch.arange(start, start + length, device=inputs.device)[None]
            # Of one shape and layout, so that one program serves every caller.
            arguments["position_ids"] = positions.expand(*positions.shape[:-2], batch, length).contiguous()
        return {**arguments, "use_cache": False, "return_dict": True}

    def _default(self, name: str) -> Any:
        parameter = self._signature.parameters.get(name)
        return None if parameter is None else parameter.default

    def _sliced_after(self, given: Mapping[str, Any], inputs: Tensor) -> int:
        """How many logits to keep of those of the whole call; 0 where the program does what was asked.

        Assisted decoding asks for another number in each step, and each would be a trace of its own.
        """
        wanted = given.get("logits_to_keep")
        length = inputs.shape[1]
        if type(wanted) is not int or (wanted == 1 and length > 1):
            return 0
        return min(wanted, length) or length

    def _served(self, given: Mapping[str, Any]) -> bool:
        """Whether a program can serve the call: the cut passes no gradients on and returns no weights."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._model.parameters()):
            if not self._told:
                logger.warning(
                    "gradients are on, so the model runs uncompiled; call it under torch.no_grad()"
                )
            self._told = True
            return False
        return given.get("labels") is None and not self._asked(given, "output_attentions")

    def _restore(self) -> None:
        modules.set_compiled_call(self._model, None)
        self._plan.give_attention_back()


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """What the attention interface calls for a compiled model; its masks are in the call's scene."""
    options = {n: v for n, v in kwargs.items() if n not in _NOT_FOR_ATTENTION}
    return traced_attention(module.layer_idx, query, key, value, options)


def _settings(model: PreTrainedModel, config: Config | None, fields: dict[str, Any]) -> Config:
    for name in ("dynamic_arg_dims", "dispatch_on"):
        if name in fields or (config is not None and name in config.explicit):
            raise ConfigError(
                f"{name} is not for the caller of compile_causal_lm to set",
                expected="batch and length dynamic, and sizes about the length",
                got=f"{name} was given",
                hint="leave it out, or use tp.compile",
            )
    base = Config.given(config, fields, to="compile_causal_lm")
    known = inspect.signature(model.forward).parameters
    dims = {name: {1: "length", 0: "batch"} for name in _DYNAMIC if name in known}
    cuts = [*(base.splitting_ops or ()), attention.name]
    return base.replace(dynamic_arg_dims=dims, splitting_ops=cuts)
