"""``compile_causal_lm``: generation is what it was, with every way of generating and every cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.errors import ConfigError, GuardError
from torch_piecewise.integrations.transformers import compile_causal_lm

VOCABULARY = 32
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": None,
}
SETTINGS: dict[str, Any] = {"backend": "eager", "disable_cache": True}


def random_model(name: str = "Llama", **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **settings})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # The usual initial weights are so small that a wrong attention would hardly show.
            if parameter.dim() == 2:
                parameter.mul_(10)
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(1, VOCABULARY, shape)


@pytest.fixture(scope="module")
def eager() -> Any:
    return random_model()


@pytest.fixture(scope="module")
def compiled() -> Any:
    return compile_causal_lm(random_model(), **SETTINGS)


@pytest.fixture(scope="module")
def assistant() -> Any:
    return random_model(num_hidden_layers=1)


def padded(model: Any) -> Tensor:
    mask = torch.ones(3, 6, dtype=torch.int64)
    mask[0, :4] = mask[1, :1] = 0
    return model.generate(ids(3, 6), attention_mask=mask, do_sample=False, max_new_tokens=6)


WAYS: dict[str, Callable[[Any], Tensor]] = {
    "greedy": lambda model: model.generate(ids(2, 5), do_sample=False, max_new_tokens=6),
    "from one token": lambda model: model.generate(ids(1, 1), do_sample=False, max_new_tokens=6),
    "padded": padded,
    "sampling": lambda model: model.generate(ids(2, 3), do_sample=True, max_new_tokens=6),
    "beams": lambda model: model.generate(ids(1, 4), num_beams=3, do_sample=False, max_new_tokens=6),
    "static cache": lambda model: model.generate(
        ids(2, 4), cache_implementation="static", do_sample=False, max_new_tokens=6
    ),
    "no cache": lambda model: model.generate(ids(2, 4), use_cache=False, do_sample=False, max_new_tokens=4),
    "prompt look-up": lambda model: model.generate(
        ids(1, 4).repeat(1, 3), prompt_lookup_num_tokens=3, do_sample=False, max_new_tokens=6
    ),
}


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("way", WAYS)
def test_generation_gives_the_same_tokens_and_two_traces_serve_all_ways(
    eager: Any, compiled: Any, way: str
) -> None:
    torch.manual_seed(5)
    want = WAYS[way](eager)
    torch.manual_seed(5)
    assert torch.equal(WAYS[way](compiled), want)
    stats = tp.program_of(compiled).stats
    assert stats.traces <= 2 and (stats.cuts, stats.pieces) == (2, 3)


@pytest.mark.usefixtures("no_grad")
def test_assisted_generation_gives_the_same_tokens(eager: Any, compiled: Any, assistant: Any) -> None:
    prompt = ids(1, 6)
    settings = {"assistant_model": assistant, "do_sample": False, "max_new_tokens": 8}
    assert torch.equal(compiled.generate(prompt, **settings), eager.generate(prompt, **settings))
    assert tp.program_of(compiled).stats.traces <= 2


@pytest.mark.usefixtures("no_grad")
def test_logits_and_cache_are_the_same_bit_for_bit_from_call_to_call(eager: Any, compiled: Any) -> None:
    kept: list[Any] = [None, None]
    mask = torch.ones(2, 0, dtype=torch.int64)
    for length in (5, 1, 3):
        tokens = ids(2, length)
        mask = torch.cat([mask, torch.ones(2, length, dtype=torch.int64)], dim=1)
        mask[1, :2] = 0
        one, other = (
            model(tokens, attention_mask=mask, past_key_values=cache)
            for model, cache in zip((eager, compiled), kept, strict=True)
        )
        assert type(other) is type(one)
        # A mask over nothing leaves values that mean nothing where padding looks at padding.
        assert torch.equal(one.logits[:, -1], other.logits[:, -1])
        kept = [one.past_key_values, other.past_key_values]
    for theirs, ours in zip(kept[0].layers, kept[1].layers, strict=True):
        assert torch.equal(theirs.keys[0], ours.keys[0])


@pytest.mark.usefixtures("no_grad")
def test_a_tuple_comes_back_where_one_is_asked_for(eager: Any, compiled: Any) -> None:
    tokens = ids(2, 4)
    one, other = (model(tokens, return_dict=False) for model in (eager, compiled))
    assert len(other) == len(one)
    assert torch.equal(other[0], one[0])


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("keep", [0, 1, 3, 9])
def test_the_last_logits_are_kept_without_a_trace_for_each_number(
    eager: Any, compiled: Any, keep: int
) -> None:
    tokens = ids(2, 4)
    want = eager(tokens, logits_to_keep=keep).logits
    # Fewer rows in a product may round differently.
    torch.testing.assert_close(compiled(tokens, logits_to_keep=keep).logits, want, rtol=1e-6, atol=1e-6)
    assert tp.program_of(compiled).stats.traces <= 2


@pytest.mark.slow
@pytest.mark.usefixtures("no_grad")
def test_a_sliding_window_and_soft_caps_stay() -> None:
    def gemma() -> Any:
        return random_model("Gemma2", head_dim=8, sliding_window=4, query_pre_attn_scalar=8)

    one, other = gemma(), compile_causal_lm(gemma(), max_length=4, **SETTINGS)
    prompt = ids(2, 6)
    settings = {"do_sample": False, "max_new_tokens": 6}
    assert torch.equal(other.generate(prompt, **settings), one.generate(prompt, **settings))
    # Weights come from the uncompiled model, within the same doors.
    want, got = (model(prompt, output_attentions=True).attentions for model in (one, other))
    assert len(got) == len(want) == 2
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_loss_and_its_gradients_are_those_of_the_uncompiled_model() -> None:
    one, other = random_model(), compile_causal_lm(random_model(), **SETTINGS)
    tokens = ids(2, 5)
    for model in (one, other):
        model(tokens, labels=tokens).loss.backward()
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    assert tp.program_of(other).stats.traces == 0


def test_that_gradients_are_on_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = compile_causal_lm(random_model(), **SETTINGS)
    model(ids(1, 2))
    model(ids(1, 2))
    assert [record.message for record in caplog.records] == [
        "gradients are on, so the model runs uncompiled; call it under torch.no_grad()"
    ]


@pytest.mark.usefixtures("no_grad")
def test_restore_gives_the_model_back_as_it_was(eager: Any) -> None:
    model = random_model()
    names = list(model.state_dict())
    compile_causal_lm(model, **SETTINGS)
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert list(model.state_dict()) == names
    tp.program_of(model).restore()
    assert model.config._attn_implementation == "sdpa"
    tokens = ids(2, 4)
    assert torch.equal(model(tokens).logits, eager(tokens).logits)
    with pytest.raises(ConfigError, match="This model is not compiled"):
        tp.program_of(model)


def test_a_call_the_model_refuses_is_refused_in_its_own_words(compiled: Any) -> None:
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        compiled()


@pytest.mark.parametrize("part", ["a part", "a copy"])
def test_a_part_or_a_copy_of_a_compiled_model_says_that_it_is_none(compiled: Any, part: str) -> None:
    other = compiled.model if part == "a part" else copy.deepcopy(compiled)
    with pytest.raises(GuardError) as caught, torch.no_grad():
        other(ids(1, 2))
    assert str(caught.value) == (
        "Attention of a compiled model was called without the model around it\n"
        "  expected: a call of the model that compile_causal_lm was given\n"
        "  got: a call of one of its parts, or of a copy of it\n"
        "  to do: call the model itself; for its parts or a copy, call tp.program_of(model).restore() first"
    )


STATEFUL = "it keeps states between calls that are no keys and values of attention"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: random_model("Mamba", state_size=4), "it has no attention modules that know their layer's"),
        (
            lambda: random_model("Falcon", multi_query=True),
            "its attention does not go through transformers' attention interface",
        ),
        (
            lambda: random_model("RecurrentGemma", head_dim=4, block_types=["recurrent", "attention"]),
            STATEFUL,
        ),
        (lambda: compile_causal_lm(random_model(), **SETTINGS), "it is compiled already"),
    ],
    ids=["no attention", "attention of its own", "recurrent states", "compiled"],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason_and_stays_as_it_was(
    make: Callable[[], Any], reason: str
) -> None:
    model = make()
    before = model.config._attn_implementation
    with pytest.raises(
        ConfigError, match=f"compile_causal_lm cannot compile {type(model).__name__}\n"
    ) as caught:
        compile_causal_lm(model, **SETTINGS)
    assert (caught.value.got or "").startswith(reason)
    assert caught.value.hint == (
        "the model runs as it is; tp.compile(model, ...) compiles calls of it without a cache"
    )
    assert model.config._attn_implementation == before


def test_dynamic_dims_are_not_for_the_caller_to_set() -> None:
    with pytest.raises(ConfigError) as caught:
        compile_causal_lm(random_model(), dynamic_arg_dims={"input_ids": 0})
    assert str(caught.value) == (
        "dynamic_arg_dims is not for the caller of compile_causal_lm to set\n"
        "  expected: batch and length dynamic, and sizes about the length\n"
        "  got: dynamic_arg_dims was given\n"
        "  to do: leave it out, or use tp.compile"
    )


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.usefixtures("no_grad")
def test_a_second_start_takes_everything_from_the_store(eager: Any, tmp_path: Any) -> None:
    settings = {"cache_dir": str(tmp_path), "compile_threads": 1}
    prompt = ids(2, 5)
    want = eager.generate(prompt, do_sample=False, max_new_tokens=6)
    for on_miss in ("compile", "error"):
        model = compile_causal_lm(random_model(), on_miss=on_miss, **settings)
        assert torch.equal(model.generate(prompt, do_sample=False, max_new_tokens=6), want)
    assert tp.program_of(model).stats.traces == 0
