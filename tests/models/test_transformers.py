"""Small transformers models with random weights work unchanged, both dims of the ids dynamic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import torch_piecewise as tp
from tests.graphs import BEFORE_2_13
from tests.models.checks import Inputs, assert_same, works_unchanged

pytestmark = pytest.mark.usefixtures("no_grad")

VOCABULARY = 32
BOTH = {0: "batch", 1: "length"}

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "Llama": {"num_key_value_heads": 1},
    "Qwen2": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 1, "sliding_window": 4},
    "Gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY},
}


def random_model(name: str, kind: str, **settings: Any) -> nn.Module:
    """A model of class ``<name><kind>`` with random weights, for inference."""
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}{kind}")(config).eval()


def ids(*shape: int) -> Tensor:
    return torch.randint(1, VOCABULARY, shape)


def decoder(name: str, **settings: Any) -> nn.Module:
    shared = {} if name == "GPT2" else TEXT
    return random_model(
        name, "ForCausalLM" if name != "GPT2" else "LMHeadModel", **{**shared, **DECODERS[name], **settings}
    )


@pytest.mark.slow
def test_a_decoder_without_a_cache() -> None:
    def inputs(size: tuple[int, int]) -> Inputs:
        return {"input_ids": ids(*size), "use_cache": False}

    # Its code asks whether the batch is 1 and whether the length is 1.
    compiled = works_unchanged(
        decoder("Llama", num_hidden_layers=2),
        inputs,
        [(2, 5), (1, 5), (2, 1), (3, 8), (1, 7), (4, 1)],
        traces=3,
        dynamic_arg_dims={"input_ids": BOTH},
    )
    assert tp.program_of(compiled).stats.cuts == 2


@pytest.mark.parametrize("name", sorted(set(DECODERS) - {"Llama"}))
def test_other_decoders_without_a_cache(name: str) -> None:
    def inputs(size: tuple[int, int]) -> Inputs:
        return {"input_ids": ids(*size), "use_cache": False}

    sizes = [(2, 5), (3, 8), (4, 4), (2, 11)]
    works_unchanged(decoder(name), inputs, sizes, dynamic_arg_dims={"input_ids": BOTH})


def test_a_decoder_with_a_padding_mask() -> None:
    def inputs(size: tuple[int, int]) -> Inputs:
        mask = torch.ones(size, dtype=torch.int64)
        mask[0, : size[1] // 2] = 0
        return {"input_ids": ids(*size), "attention_mask": mask, "use_cache": False}

    works_unchanged(
        decoder("Llama"),
        inputs,
        [(2, 5), (3, 8), (4, 4)],
        dynamic_arg_dims={"input_ids": BOTH, "attention_mask": BOTH},
    )


def test_a_decoder_that_returns_all_hidden_states_as_a_tuple() -> None:
    model = decoder("Llama")
    # The first such call puts hooks on the model under a lock, which no trace can hold.
    model(input_ids=ids(1, 2), use_cache=False, output_hidden_states=True)

    def inputs(size: tuple[int, int]) -> Inputs:
        return {
            "input_ids": ids(*size),
            "use_cache": False,
            "output_hidden_states": True,
            "return_dict": False,
        }

    works_unchanged(model, inputs, [(2, 5), (3, 8)], dynamic_arg_dims={"input_ids": BOTH})


def test_a_decoder_with_embeddings_as_input_and_some_logits_kept() -> None:
    def inputs(size: tuple[int, int]) -> Inputs:
        return {"inputs_embeds": torch.randn(*size, 16), "use_cache": False, "logits_to_keep": 1}

    works_unchanged(decoder("Llama"), inputs, [(2, 5), (3, 8)], dynamic_arg_dims={"inputs_embeds": BOTH})


@pytest.mark.parametrize(
    ("name", "sizes"), [("Bert", [(2, 5), (2, 1), (3, 8), (4, 1)]), ("DistilBert", [(2, 5), (3, 8), (1, 4)])]
)
def test_an_encoder(name: str, sizes: list[tuple[int, int]]) -> None:
    settings = (
        {
            "vocab_size": VOCABULARY,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": 2,
            "n_heads": 2,
            "max_position_embeddings": 32,
        }
        if name == "DistilBert"
        else TEXT
    )

    def inputs(size: tuple[int, int]) -> Inputs:
        return {"input_ids": ids(*size), "attention_mask": torch.ones(size, dtype=torch.int64)}

    works_unchanged(
        random_model(name, "Model", **settings),
        inputs,
        sizes,
        # torch 2.11 asks whether the batch of a mask is one.
        traces=2 if (2, 1) in sizes or (BEFORE_2_13 and name == "DistilBert") else 1,
        dynamic_arg_dims={"input_ids": BOTH, "attention_mask": BOTH},
    )


T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize(("name", "settings"), [("T5", T5), ("Bart", BART)])
def test_an_encoder_decoder(name: str, settings: Mapping[str, Any]) -> None:
    def inputs(size: tuple[int, int]) -> Inputs:
        return {"input_ids": ids(size[0], 5), "decoder_input_ids": ids(*size), "use_cache": False}

    works_unchanged(
        random_model(name, "ForConditionalGeneration", **settings),
        inputs,
        [(2, 5), (3, 8), (4, 4)],
        dynamic_arg_dims={"input_ids": {0: "batch"}, "decoder_input_ids": BOTH},
    )


VIT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def test_an_image_classifier() -> None:
    def inputs(n: int) -> Inputs:
        return {"pixel_values": torch.randn(n, 3, 8, 8)}

    works_unchanged(
        random_model("ViT", "ForImageClassification", **VIT),
        inputs,
        traces=2 if BEFORE_2_13 else 1,  # torch 2.11 chooses a convolution by the batch: one or several
        dynamic_arg_dims={"pixel_values": 0},
    )


def test_generation_with_a_cut_model_gives_the_same_tokens() -> None:
    model, prompt = decoder("Llama"), ids(2, 3)
    settings = {"max_new_tokens": 4, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    want = model.generate(prompt, **settings)
    names = ("input_ids", "attention_mask", "position_ids")
    tp.compile(model, backend="eager", dynamic_arg_dims=dict.fromkeys(names, BOTH))
    assert torch.equal(model.generate(prompt, **settings), want)
    assert tp.program_of(model).stats.traces == 1


def test_a_loss_with_labels_and_its_gradients() -> None:
    model = decoder("Llama")
    compiled = tp.compile(
        decoder("Llama"), backend="eager", dynamic_arg_dims={"input_ids": BOTH, "labels": BOTH}
    )
    with torch.enable_grad():
        for size in ((2, 5), (3, 7)):
            prompt = ids(*size)
            for one in (model, compiled):
                one.zero_grad()
                one(input_ids=prompt, labels=prompt, use_cache=False).loss.backward()
            got, want = ([p.grad for p in one.parameters()] for one in (compiled, model))
            # Its attention takes another way in a trace than in a run, and so does torch.compile.
            assert_same(got, want, tolerance=1e-6)
    assert tp.program_of(compiled).stats.traces == 1
