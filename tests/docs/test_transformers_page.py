"""The page's code runs as it stands, in the order it stands in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

import torch_piecewise as tp

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": None,
}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}


@pytest.mark.slow
def test_every_block_of_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_PIECEWISE_BACKEND", "eager")
    names = {
        "torch": torch,
        "model": transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval(),
        "encoder": transformers.BertModel(transformers.BertConfig(**SHAPE)).eval(),
        "translator": transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).eval(),
        "prompt": torch.randint(1, 32, (2, 5)),
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert names["answer"].shape == (2, 13)
    for name in ("encoder", "translator"):
        assert tp.program_of(names[name]).stats.traces == 1


def test_every_file_and_page_it_names_is_there() -> None:
    text = PAGE.read_text("utf-8")
    named = re.findall(r"\]\(([\w./]+)\)", text)
    assert named
    assert all((PAGE.parent / name).exists() for name in named)
    assert all(
        (PAGE.parents[1] / name).exists() for name in ("tools/architectures.py", "examples/mini_engine")
    )
