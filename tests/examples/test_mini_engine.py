"""The engine's tokens are transformers' own greedy ones, whatever runs beside a sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import torch_piecewise as tp
from examples.mini_engine.engine import Engine
from examples.mini_engine.model import PagedLlama, compile_model
from torch_piecewise.demo.llama_config import LlamaConfig
from torch_piecewise.demo.model import Llama

VOCABULARY = 64


@pytest.fixture(scope="module")
def theirs() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        # The default initial weights are so small that a wrong attention would hardly show.
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def paged(theirs: Any, *, pages: int) -> PagedLlama:
    config = LlamaConfig.from_transformers(theirs.config.to_dict())
    whole = Llama(config, capacity=1)
    whole.load_transformers(theirs.state_dict())
    model = PagedLlama(config, pages=pages, page=4)
    model.load_state_dict(whole.state_dict(), assign=True)
    return model


def greedy(theirs: Any, prompt: list[int], new_tokens: int) -> list[int]:
    made = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)
    return made[0, len(prompt) :].tolist()


def prompts(*lengths: int) -> list[list[int]]:
    return [torch.randint(1, VOCABULARY, (length,)).tolist() for length in lengths]


def test_many_prompts_at_once_give_the_tokens_each_gives_alone(theirs: Any) -> None:
    model = compile_model(paged(theirs, pages=20), backend="eager", disable_cache=True)
    engine = Engine(model, places=3, step_tokens=8)  # prompts wait, and come in parts
    given = prompts(5, 1, 21, 2, 9, 13, 4)
    sequences = [engine.add(prompt, 3 + index) for index, prompt in enumerate(given)]
    engine.run()
    for index, (prompt, one) in enumerate(zip(given, sequences, strict=True)):
        assert one.made == greedy(theirs, prompt, 3 + index)
    assert sorted(engine.free) == list(range(20))
    stats = tp.program_of(model).stats
    assert (stats.cuts, stats.pieces) == (2, 3)
    assert stats.traces <= 2


def test_a_stop_token_ends_a_sequence(theirs: Any) -> None:
    [prompt] = prompts(6)
    want = greedy(theirs, prompt, 5)
    engine = Engine(paged(theirs, pages=4), stop={want[2]})
    one = engine.add(prompt, 5)
    engine.run()
    assert one.made == want[: want.index(want[2]) + 1]


def test_a_prompt_that_never_fits_is_refused(theirs: Any) -> None:
    with pytest.raises(ValueError, match="need more pages than there are"):
        Engine(paged(theirs, pages=2)).add([1] * 6, 3)


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.timeout(900)
def test_the_real_model_answers_as_transformers_does() -> None:
    from torch_piecewise.demo.baselines import load_transformers
    from torch_piecewise.demo.text import Chat
    from torch_piecewise.demo.weights import load_llama, model_folder

    pytest.importorskip("gguf")
    folder = model_folder()
    chat, whole = Chat.load(folder), load_llama(folder, capacity=1)
    model = PagedLlama(whole.config, pages=64, page=16)
    model.load_state_dict(whole.state_dict(), assign=True)
    engine = Engine(compile_model(model), places=2)
    given = [chat.prompt(text) for text in ("Name a river.", "What do bees make?", "Count to five.")]
    sequences = [engine.add(prompt, 12) for prompt in given]
    engine.run()
    theirs = load_transformers(folder)
    theirs.generation_config.eos_token_id = None
    for prompt, one in zip(given, sequences, strict=True):
        assert one.made == greedy(theirs, prompt, 12)
