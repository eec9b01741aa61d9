"""Static graphs as people without a GPU, or with habits from elsewhere, call them."""

from __future__ import annotations

import pytest
import torch

import torch_piecewise as tp
from torch_piecewise.errors import ConfigError, StaticGraphError
from torch_piecewise.testing import GraphRecorder

FULL, PIECEWISE, NONE = tp.CUDAGraphMode.FULL, tp.CUDAGraphMode.PIECEWISE, tp.CUDAGraphMode.NONE

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_wrapping_calling_through_and_clearing_need_no_gpu() -> None:
    wrapped = tp.CUDAGraphWrapper(double, FULL)
    x = torch.randn(3)
    assert torch.equal(wrapped(x), double(x))
    with tp.forward_context(NONE, tp.BatchDescriptor(3)):
        assert torch.equal(wrapped(x), double(x))
    wrapped.clear_all_graphs()
    assert wrapped.unwrap() is double


@without_gpu
@pytest.mark.parametrize("pool", [None, (0, 1)])
def test_a_capture_without_a_gpu_says_what_else_captures(pool: tuple[int, int] | None) -> None:
    wrapped = tp.CUDAGraphWrapper(double, FULL, None, pool)
    with tp.forward_context(FULL, tp.BatchDescriptor(3)), pytest.raises(StaticGraphError) as refused:
        wrapped(torch.randn(3))
    assert str(refused.value) == (
        "A CUDA graph was to be captured, and there is no GPU that torch can use\n"
        "  expected: a GPU, or another pool\n"
        f"  got: torch {torch.__version__} without one\n"
        "  to do: call without a forward_context; or give "
        "pool=torch_piecewise.testing.GraphRecorder(), which captures and replays without a GPU; where no "
        "pool is given, TORCH_PIECEWISE_STATIC_GRAPH_CLASS names the class"
    )


def test_the_wrapper_takes_its_arguments_by_the_names_of_the_contract() -> None:
    recorder = GraphRecorder()
    wrapped = tp.CUDAGraphWrapper(
        runnable=double, runtime_mode=PIECEWISE, options=tp.CUDAGraphOptions(), pool=recorder
    )
    x = torch.randn(3)
    with tp.forward_context(mode=PIECEWISE, descriptor=tp.BatchDescriptor(num_tokens=3)):
        wrapped(x)
        x.copy_(torch.randn(3))
        assert torch.equal(wrapped(x), x * 2)
    assert (recorder.captures, recorder.replays) == (1, 2)


def test_swapped_arguments_of_a_context_are_told() -> None:
    with (
        pytest.raises(ConfigError) as refused,
        tp.forward_context(tp.BatchDescriptor(3), FULL),  # type: ignore[arg-type]
    ):
        pass
    assert str(refused.value) == (
        "forward_context takes a mode and a batch\n"
        "  expected: forward_context(CUDAGraphMode.PIECEWISE, BatchDescriptor(num_tokens))\n"
        "  got: forward_context(BatchDescriptor(num_tokens=3, num_reqs=None, uniform=False, has_lora=False, "
        "num_active_loras=0), FULL)"
    )


def test_a_number_is_a_batch_of_that_many_tokens() -> None:
    dispatcher = tp.CUDAGraphDispatcher(tp.CUDAGraphMode.FULL_AND_PIECEWISE, [1, 2, 4, 8])
    assert (
        dispatcher.dispatch(3)
        == dispatcher.dispatch(tp.BatchDescriptor(3))
        == (
            PIECEWISE,
            tp.BatchDescriptor(4),
        )
    )
    assert dispatcher.dispatch(9).mode is NONE


def test_a_dispatcher_is_not_made_of_settings() -> None:
    with pytest.raises(ConfigError, match="A dispatcher is made for one policy") as refused:
        tp.CUDAGraphDispatcher(tp.Config())  # type: ignore[arg-type]
    assert "CUDAGraphDispatcher(config.cudagraph_mode, config.resolved_capture_sizes())" in str(refused.value)


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("decode_mode", (NONE, PIECEWISE, FULL, FULL, FULL)),
        ("mixed_mode", (NONE, PIECEWISE, FULL, NONE, PIECEWISE)),
        ("max_cudagraph_mode", (NONE, PIECEWISE, FULL, FULL, FULL)),
        ("has_piecewise_cudagraphs", (False, True, False, False, True)),
        ("has_full_cudagraphs", (False, False, True, True, True)),
        ("requires_piecewise_compilation", (False, True, False, False, True)),
        ("separate_routine", (False, False, False, True, True)),
    ],
)
def test_every_mode_answers_every_question(question: str, answers: tuple[object, ...]) -> None:
    names = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
    assert [mode.name for mode in tp.CUDAGraphMode] == list(names)
    assert tuple(getattr(tp.CUDAGraphMode[name], question)() for name in names) == answers
