# ruff: noqa: E501 - a table is read by its rows
"""Small random models of many transformers architectures, and how each is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY = 64
BOTH = {1: "length", 0: "batch"}


def ids(batch: int, length: int) -> Tensor:
    """Random tokens, none of them padding."""
    return torch.randint(3, VOCABULARY, (batch, length))


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        name: as people know it.
        config: class of ``transformers``.
        model: class of ``transformers``.
        settings: of the config.
        causal: generates text; else it is called once.
        inputs: ``(batch, length) -> arguments`` of a call, for those that do not generate.
        dims: what ``tp.compile`` is told.
        sizes: the calls that are compared; the first is traced.
        remark: what the reader of its row has to know.
    """

    name: str
    config: str
    model: str
    settings: Mapping[str, Any]
    causal: bool = True
    inputs: Callable[[int, int], dict[str, Any]] | None = None
    dims: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ((2, 7), (3, 5))
    remark: str = ""

    def make(self) -> Any:
        """The model, in eval mode, the same weights every time."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.settings)
        # The token that would end a text early must not win by chance.
        config.eos_token_id = None
        model = getattr(transformers, self.model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # The usual initial weights are so small that a wrong attention would hardly show.
                if parameter.dim() == 2:
                    parameter.mul_(6)
        return model


_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GQA = {**_SHAPE, "num_key_value_heads": 2}
_MOE = {**_GQA, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "num_experts": 4}
_MLA = {
    **_SHAPE,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "pad_token_id": 0,
}
_HEAD_8 = {**_GQA, "head_dim": 8}


def _causal(name: str, prefix: str, settings: Mapping[str, Any], model: str = "ForCausalLM") -> Architecture:
    config = prefix if prefix.endswith("Config") else f"{prefix}Config"
    return Architecture(
        name, config, f"{prefix.removesuffix('TextConfig').removesuffix('Config')}{model}", settings
    )


def _loops_over_length(one: Architecture) -> Architecture:
    """A decoder whose code loops over the length in Python: each length is a trace of its own."""
    remark = "a trace for each length: its code loops over the length"
    dims = {name: {0: "batch"} for name in ("input_ids", "attention_mask", "position_ids")}
    return dataclasses.replace(one, dims=dims, remark=remark)


DECODERS = (
    _causal("Llama", "Llama", _GQA),
    _causal("Qwen2", "Qwen2", _GQA),
    _causal("Qwen3", "Qwen3", _HEAD_8),
    _causal("Mistral (sliding window)", "Mistral", {**_GQA, "sliding_window": 4}),
    _causal("Gemma", "Gemma", _HEAD_8),
    _causal("Gemma 2", "Gemma2", {**_HEAD_8, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    _causal("Gemma 3", "Gemma3TextConfig", {**_HEAD_8, "sliding_window": 4, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2}),
    _causal("Phi", "Phi", _SHAPE),
    _causal("Phi-3", "Phi3", _GQA),
    _causal("GPT-2", "GPT2", _GPT2, "LMHeadModel"),
    _causal("GPT-NeoX", "GPTNeoX", _SHAPE),
    _causal("GPT-J", "GPTJ", {**_GPT2, "rotary_dim": 4}),
    _causal("GPT-Neo", "GPTNeo", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "local"], 1]], "window_size": 4, "max_position_embeddings": 64, "pad_token_id": 0}),
    _causal("GPT-BigCode", "GPTBigCode", _GPT2),
    _causal("OPT", "OPT", {"vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    _causal("Falcon", "Falcon", {**_SHAPE, "multi_query": True}),
    _causal("Bloom", "Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4, "pad_token_id": 0}),
    _causal("MPT", "Mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64, "pad_token_id": 0}),
    _causal("StableLM", "StableLm", _GQA),
    _causal("StarCoder2 (sliding window)", "Starcoder2", {**_GQA, "sliding_window": 4}),
    _causal("Cohere", "Cohere", _GQA),
    _causal("Cohere 2", "Cohere2", {**_HEAD_8, "sliding_window": 4}),
    _causal("OLMo", "Olmo", _GQA),
    _causal("OLMo 2", "Olmo2", _GQA),
    _causal("Granite", "Granite", _GQA),
    _causal("SmolLM3", "SmolLM3", _GQA),
    _causal("GLM-4", "Glm4", _HEAD_8),
    _causal("Nemotron", "Nemotron", _HEAD_8),
    _causal("Helium", "Helium", _HEAD_8),
    _causal("EXAONE 4", "Exaone4", {**_GQA, "sliding_window": 4, "sliding_window_pattern": 2}),
    _causal("Mixtral", "Mixtral", {**_GQA, "num_local_experts": 4}),
    _causal("Qwen2-MoE", "Qwen2Moe", {**_MOE, "shared_expert_intermediate_size": 16}),
    _causal("Qwen3-MoE", "Qwen3Moe", {**_MOE, "head_dim": 8}),
    _causal("OLMoE", "Olmoe", {**_GQA, "num_experts": 4, "num_experts_per_tok": 2}),
    _causal("GPT-OSS", "GptOss", {**_HEAD_8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
    _causal("DeepSeek V2", "DeepseekV2", _MLA),
    _causal("DeepSeek V3", "DeepseekV3", _MLA),
    _causal("Mamba", "Mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "pad_token_id": 0}),
    _loops_over_length(_causal("RecurrentGemma", "RecurrentGemma", {**_HEAD_8, "attention_window_size": 8, "lru_width": 32, "block_types": ["recurrent", "attention"]})),
    _loops_over_length(_causal("RWKV", "Rwkv", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32, "pad_token_id": 0})),
)  # fmt: skip


def _text(batch: int, length: int) -> dict[str, Any]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length - length // 3 :] = 0
    return {"input_ids": ids(batch, length), "attention_mask": mask}


def _pair(batch: int, length: int) -> dict[str, Any]:
    return {**_text(batch, length + 2), "decoder_input_ids": ids(batch, length), "use_cache": False}


def _image(batch: int, length: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, 16, 16)}


def _image_and_text(batch: int, length: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, 16, 16), **_text(batch, length)}


def _sound(batch: int, length: int) -> dict[str, Any]:
    return {
        "input_features": torch.randn(batch, 8, 32),
        "decoder_input_ids": ids(batch, length),
        "use_cache": False,
    }


_TEXT_DIMS = {"input_ids": BOTH, "attention_mask": BOTH}
_PAIR_DIMS = {
    "input_ids": {1: "source", 0: "batch"},
    "attention_mask": {1: "source", 0: "batch"},
    "decoder_input_ids": BOTH,
}
_IMAGE_DIMS = {"pixel_values": {0: "batch"}}
_VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_TEXT_TOWER = _SHAPE


def _encoder(name: str, prefix: str, settings: Mapping[str, Any], model: str = "Model") -> Architecture:
    return Architecture(name, f"{prefix}Config", f"{prefix}{model}", settings, False, _text, _TEXT_DIMS)


def _seq2seq(name: str, prefix: str, settings: Mapping[str, Any]) -> Architecture:
    return Architecture(
        name, f"{prefix}Config", f"{prefix}ForConditionalGeneration", settings, False, _pair, _PAIR_DIMS
    )


def _vision(name: str, prefix: str, settings: Mapping[str, Any], model: str = "Model") -> Architecture:
    return Architecture(name, f"{prefix}Config", f"{prefix}{model}", settings, False, _image, _IMAGE_DIMS)


ONE_CALL = (
    _encoder("BERT", "Bert", _SHAPE),
    _encoder("RoBERTa", "Roberta", {**_SHAPE, "max_position_embeddings": 80}),
    _encoder("DistilBERT", "DistilBert", {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}),
    _encoder("ALBERT", "Albert", {**_SHAPE, "embedding_size": 16}),
    _encoder("ELECTRA", "Electra", {**_SHAPE, "embedding_size": 16}),
    _encoder("MPNet", "MPNet", _SHAPE),
    _encoder("ModernBERT", "ModernBert", {**_SHAPE, "local_attention": 8, "global_attn_every_n_layers": 2}),
    _encoder("DeBERTa v2", "DebertaV2", {**_SHAPE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}),
    _seq2seq("T5", "T5", _T5),
    _seq2seq("BART", "Bart", _BART),
    _seq2seq("Pegasus", "Pegasus", _BART),
    Architecture("Whisper", "WhisperConfig", "WhisperForConditionalGeneration", {**_BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64, "decoder_start_token_id": 1}, causal=False, inputs=_sound, dims={"input_features": {0: "batch"}, "decoder_input_ids": BOTH}),
    _vision("ViT", "ViT", _VIT, "ForImageClassification"),
    _vision("DeiT", "DeiT", _VIT),
    _vision("DINOv2", "Dinov2", {**_VIT, "mlp_ratio": 2}),
    _vision("BEiT", "Beit", _VIT),
    _vision("ConvNeXt", "ConvNext", {"image_size": 16, "patch_size": 2, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}),
    _vision("ResNet", "ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}),
    _vision("Swin", "Swin", {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}),
    Architecture("CLIP", "CLIPConfig", "CLIPModel", {"text_config": _TEXT_TOWER, "vision_config": _VIT, "projection_dim": 16}, causal=False, inputs=_image_and_text, dims={**_IMAGE_DIMS, **_TEXT_DIMS}),
    Architecture("SigLIP", "SiglipConfig", "SiglipModel", {"text_config": _TEXT_TOWER, "vision_config": _VIT}, causal=False, inputs=_image_and_text, dims={**_IMAGE_DIMS, **_TEXT_DIMS}),
)  # fmt: skip

ARCHITECTURES = (*DECODERS, *ONE_CALL)
