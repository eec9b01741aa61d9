"""Which models of transformers can be compiled with their caches, and how one of them is cut."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import create_masks_for_generate

from torch_piecewise.errors import ConfigError
from torch_piecewise.torch_private import modules


@dataclass(frozen=True)
class CutPlan:
    """How one model is cut.

    Attributes:
        config: the model's, as it was: masks and caches are made by it.
        implementations: every config inside the model, with what its attention was.
        layers: attention modules by layer number.
        layer_types: of each layer, where masks differ by type; empty where all layers share one.
        attend: the model's own attention.
        make_masks: the model's own way to make masks.
    """

    config: Any
    implementations: tuple[tuple[Any, str], ...]
    layers: Mapping[int, Module]
    layer_types: Mapping[int, str]
    attend: Callable[..., tuple[Tensor, Any]]
    make_masks: Callable[..., Any]

    @classmethod
    def of(cls, model: PreTrainedModel) -> CutPlan:
        """Look at ``model``.

        Raises:
            ConfigError: it cannot be compiled this way, with the reason.
        """
        layers = _attention_layers(model)
        _refuse(model, layers)
        text = model.config.get_text_config(decoder=True)
        types = getattr(text, "layer_types", None) or ()
        return cls(
            config=copy.deepcopy(model.config),
            implementations=tuple(
                (config, config._attn_implementation)  # noqa: SLF001 - the setting has no other name
                for config in {
                    id(m.config): m.config for m in model.modules() if hasattr(m, "config")
                }.values()
            ),
            layers=layers,
            layer_types=dict(enumerate(types)),
            attend=_own_attention(next(iter(layers.values()))),
            make_masks=getattr(model, "create_masks_for_generate", create_masks_for_generate),
        )

    def set_attention(self, name: str) -> None:
        """Have every config inside the model name this attention."""
        for config, _ in self.implementations:
            config._attn_implementation = name  # noqa: SLF001 - the setting has no other name

    def give_attention_back(self) -> None:
        """Have every config name the attention that it named before."""
        for config, implementation in self.implementations:
            config._attn_implementation = implementation  # noqa: SLF001 - the setting has no other name


def _attention_layers(model: PreTrainedModel) -> dict[int, Module]:
    found: dict[int, Module] = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if "Attention" not in type(module).__name__ or not isinstance(layer, int):
            continue
        if found.setdefault(layer, module) is not module:
            raise _refusal(model, f"layer {layer} has more than one attention module")
    return found


def _refuse(model: PreTrainedModel, layers: Mapping[int, Module]) -> None:
    """Refuse a model whose calls would not be what they are uncompiled."""
    config = model.config.get_text_config(decoder=True)
    if hasattr(modules.compiled_call(model), "compiled_call"):  # what this integration puts around one
        raise _refusal(model, "it is compiled already")
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise _refusal(model, "it has an encoder, or attends to one")
    if not layers:
        raise _refusal(model, "it has no attention modules that know their layer's number")
    if not model._can_set_attn_implementation():  # noqa: SLF001 - what set_attn_implementation itself asks
        raise _refusal(model, "its attention does not go through transformers' attention interface")
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if model._is_stateful or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:  # noqa: SLF001 - no other name
        raise _refusal(model, "it keeps states between calls that are no keys and values of attention")


def _refusal(model: PreTrainedModel, reason: str) -> ConfigError:
    return ConfigError(
        f"compile_causal_lm cannot compile {type(model).__name__}",
        expected="a decoder-only model whose only state between calls is its keys and values, and whose "
        "attention goes through transformers' attention interface",
        got=reason,
        hint="the model runs as it is; tp.compile(model, ...) compiles calls of it without a cache",
    )


def _own_attention(layer: Any) -> Callable[..., tuple[Tensor, Any]]:
    """What the model's attention was before it was compiled."""
    source = sys.modules[type(layer).__module__]
    eager = getattr(source, "eager_attention_forward", None)
    table = getattr(source, "ALL_ATTENTION_FUNCTIONS", AttentionInterface())
    name = layer.config._attn_implementation  # noqa: SLF001 - the setting has no other name
    attend: Callable[..., tuple[Tensor, Any]] = table.get_interface(name, eager)
    return attend
