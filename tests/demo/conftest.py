"""A tiny model with random weights, kept in the folder format that the demo reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from torch_piecewise.demo.weights import load_llama

TEMPLATE = (
    "{% for message in messages %}{{ bos_token + message['role'] + ':' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One token for each byte, and two for the template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<start>", special=True), AddedToken("<end>", special=True)])
    return made


@pytest.fixture(scope="session")
def theirs(tokenizer: Tokenizer) -> Any:
    """transformers' Llama with two layers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            # The default initial weights are so small that a wrong attention would hardly show.
            torch.nn.init.normal_(parameter, std=0.4)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def folder(tokenizer: Tokenizer, theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    theirs.save_pretrained(made)
    tokenizer.save(str(made / "tokenizer.json"))
    words = {"bos_token": "<start>", "eos_token": "<end>"}
    (made / "tokenizer_config.json").write_text(json.dumps(words), "utf-8")
    (made / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return made


@pytest.fixture
def ours(folder: Path) -> Any:
    return load_llama(folder, capacity=64)
