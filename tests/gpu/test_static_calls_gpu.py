"""tp.compile with static graphs on a real GPU: results, pools, weights, budgets, threads."""

from __future__ import annotations

import copy
import gc
import threading
import time

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.errors import StaticGraphError

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


@tp.splitting_op("gpu_tests::mix", mutates_args=("out",))
def mix(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Something row by row between [n, d] tensors, written into ``out``."""
    out.copy_(torch.sigmoid(q) * k + v)


@tp.splitting_op("gpu_tests::append", mutates_args=("cache", "out"))
def append(x: Tensor, slots: Tensor, cache: Tensor, out: Tensor) -> None:
    """Write rows to their slots of a cache whose last row nobody reads."""
    cache.index_copy_(0, torch.where(slots < 0, cache.shape[0] - 1, slots), x)
    out.copy_(x)


@tp.splitting_op("gpu_tests::looks", mutates_args=("out",))
def looks(x: Tensor, out: Tensor) -> None:
    """Waits for the device, which no graph can hold."""
    out.copy_(x + 0 * x.sum().item())


class Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        out = torch.empty_like(q)
        mix(q, k, v, out)
        return x + out


class Rows(torch.nn.Module):
    def __init__(self, depth: int = 3, width: int = 256) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(width) for _ in range(depth))
        self.norm = torch.nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def rows(count: int, width: int = 256) -> Tensor:
    return torch.randn(count, width, device="cuda")


def compiled(model, **fields):
    model = model.to("cuda").eval() if isinstance(model, torch.nn.Module) else model
    reference = copy.deepcopy(model)
    settings = {
        "backend": "eager",
        "splitting_ops": ["gpu_tests::mix"],
        "disable_cache": True,
        "cudagraph_mode": "piecewise",
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16],
    } | fields
    made = tp.compile(model, **settings)
    return made, reference, tp.program_of(made)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


MODES = ["piecewise", "full", "full_and_piecewise"]


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_calls_of_every_size_give_eagers_results_and_are_replayed(mode):
    model, reference, handle = compiled(Rows(), cudagraph_mode=mode)
    model(rows(3))
    handle.warmup()
    with handle.counters.expect(calls_replayed=7, sizes_captured=0, graphs_captured=0):
        kept = []
        for size in (16, 1, 7, 3, 8, 2, 16):
            x = rows(size)
            kept.append((x, model(x)))
    for x, y in kept:
        close(y, reference(x))
    x = rows(17)
    close(model(x), reference(x))


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_pieces_compiled_by_inductor_are_captured(inductor, mode):
    model, reference, handle = compiled(
        Rows(depth=2), backend="inductor", cudagraph_mode=mode, cudagraph_capture_sizes=[4, 8]
    )
    model(rows(3))
    handle.warmup()
    for size in (3, 8, 1):
        x = rows(size)
        close(model(x), reference(x))
    assert handle.counters["calls_replayed"] == 3


@pytest.mark.parametrize("mode", ["piecewise", "full_and_piecewise"])
@torch.no_grad()
def test_inductors_own_partitions_are_captured(inductor, tmp_path, mode):
    def made():
        torch.manual_seed(1)
        return compiled(
            Rows(depth=2),
            backend="inductor",
            use_inductor_graph_partition=True,
            cudagraph_mode=mode,
            cudagraph_capture_sizes=[4, 8],
            disable_cache=False,
            cache_dir=str(tmp_path),
        )

    for compiles in (1, 0):
        model, reference, handle = made()
        model(rows(3))
        assert handle.counters["artifacts_compiled"] == compiles
        graphs = 6 if mode == "piecewise" else 8
        with handle.counters.expect(static_graphs=graphs):
            handle.warmup()
        with handle.counters.expect(calls_replayed=4, sizes_captured=0):
            kept = [(x, model(x)) for x in map(rows, (3, 8, 1, 5))]
        for x, y in kept:
            close(y, reference(x))


@torch.no_grad()
def test_partitions_read_weights_that_lie_at_odd_addresses(inductor):
    model, reference, _handle = compiled(
        Rows(depth=1),
        backend="inductor",
        use_inductor_graph_partition=True,
        cudagraph_num_of_warmups=0,
        cudagraph_capture_sizes=[4],
    )
    model(rows(4))
    memory = torch.randn(257, device="cuda")
    for one in (model, reference):
        one.norm.weight = torch.nn.Parameter(memory[1:])
    for _ in range(3):
        x = rows(4)
        close(model(x), reference(x))


@torch.inference_mode()
def test_sizes_are_captured_in_calls_when_they_were_not_warmed_up():
    model, reference, handle = compiled(Rows())
    for size in (3, 3, 3, 8, 8, 8, 3):
        x = rows(size)
        close(model(x), reference(x))
    assert handle.counters["sizes_captured"] == 2


@torch.no_grad()
def test_uniform_batches_replay_one_graph_and_mixed_ones_the_pieces():
    model, reference, handle = compiled(Rows(), cudagraph_mode="full_and_piecewise")
    model(rows(4))
    handle.warmup([4])
    for batch in (tp.BatchDescriptor(3), tp.BatchDescriptor(3, num_reqs=3, uniform=True)):
        with tp.forward_context(*handle.dispatch(batch)):
            x = rows(3)
            close(model(x), reference(x))
    modes = [row.mode.name for row in handle.static_graphs.table().rows() if row.size == 3]
    assert modes == ["FULL", "PIECEWISE"]


@torch.no_grad()
def test_a_replaced_and_a_moved_weight_are_captured_anew():
    model, reference, handle = compiled(Rows(), cudagraph_num_of_warmups=0)
    model(rows(4))
    new = torch.randn(256, device="cuda")
    for one in (model, reference):
        one.norm.weight = torch.nn.Parameter(new.clone())
    for _ in range(2):
        x = rows(4)
        close(model(x), reference(x))
    for one in (model, reference):
        one.norm.weight.data = (new * 2).clone()
    torch.cuda.empty_cache()
    for _ in range(2):
        x = rows(4)
        close(model(x), reference(x))
    assert handle.counters["sizes_captured"] == 3


@pytest.mark.parametrize("mode", ["piecewise", "full"])
@torch.no_grad()
def test_a_cache_given_as_an_argument_is_written_in_place_and_padding_goes_nowhere(mode):
    def step(x: Tensor, slots: Tensor, cache: Tensor) -> Tensor:
        out = torch.empty_like(x)
        append(x * 2, slots, cache, out)
        return out + 1

    run = tp.compile(
        step,
        backend="eager",
        disable_cache=True,
        splitting_ops=["gpu_tests::append"],
        dynamic_arg_dims={"x": {0: "n"}, "slots": {0: "n"}},
        cudagraph_mode=mode,
        cudagraph_capture_sizes=[4],
        cudagraph_pad_values={"slots": -1},
        cudagraph_num_of_warmups=1,
    )
    cache = torch.zeros(9, 8, device="cuda")
    expected = torch.zeros(9, 8, device="cuda")
    for _ in range(5):
        x, slots = rows(3, 8), torch.randperm(8, device="cuda")[:3]
        close(run(x, slots, cache), x * 2 + 1)
        expected[slots] = x * 2
        close(cache[:8], expected[:8])
    assert tp.program_of(run).counters["calls_replayed"] == 4


@torch.no_grad()
def test_a_whole_call_that_waits_for_the_device_is_served_without_a_graph():
    def step(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        looks(x * 2, out)
        return out + 1

    run = tp.compile(
        step,
        dynamic_arg_dims={"x": 0},
        backend="eager",
        disable_cache=True,
        splitting_ops=["gpu_tests::looks"],
        cudagraph_mode="full",
        cudagraph_capture_sizes=[4],
    )
    for _ in range(4):
        x = rows(4, 8)
        close(run(x), x * 2 + 1)
    assert tp.program_of(run).counters["captures_refused"] == 1
    # The pool of a capture that could not be ended is given up; others go on.
    model, reference, handle = compiled(Rows())
    model(rows(4))
    handle.warmup([4])
    x = rows(4)
    close(model(x), reference(x))


@torch.no_grad()
def test_the_budget_is_measured_and_kept():
    model, reference, handle = compiled(Rows(), cudagraph_memory_budget=1, cudagraph_capture_sizes=[2, 4])
    model(rows(4))
    report = handle.warmup()
    assert report.bytes_used <= 1 and report.refused == 2
    x = rows(2)
    close(model(x), reference(x))


@torch.no_grad()
def test_results_still_held_are_refused_when_that_was_asked_for():
    model, reference, _handle = compiled(Rows(), cudagraph_outputs="refuse", cudagraph_num_of_warmups=0)
    x = rows(4)
    kept = model(x)
    with pytest.raises(StaticGraphError, match="still held"):
        model(x)
    close(kept, reference(x))


@torch.inference_mode()
def test_threads_on_streams_of_their_own_take_turns():
    model, reference, handle = compiled(Rows(width=1024))
    model(rows(16, 1024))
    handle.warmup()
    wrong = []

    @torch.inference_mode()
    def work(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(20):
                x = rows(1 + (seed + turn) % 16, 1024)
                got, expected = model(x), reference(x)
                if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
                    wrong.append((seed, turn))

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@torch.no_grad()
def test_a_draft_model_has_a_pool_of_its_own():
    target, target_reference, first = compiled(Rows())
    draft, draft_reference, second = compiled(Rows(depth=1))
    for model, handle in ((target, first), (draft, second)):
        model(rows(4))
        handle.warmup([4])
    x = rows(4)
    kept = target(x), draft(x), target(x + 1)
    close(kept[0], target_reference(x))
    close(kept[1], draft_reference(x))
    close(kept[2], target_reference(x + 1))


@torch.no_grad()
def test_35_sizes_are_captured_in_less_than_20_seconds():
    from torch_piecewise.cudagraphs import default_capture_sizes

    torch.cuda.synchronize()
    gc.collect()
    sizes = default_capture_sizes(256)
    assert len(sizes) == 35
    model, reference, handle = compiled(
        Rows(depth=8, width=1024), cudagraph_capture_sizes=sizes, cudagraph_mode="full_and_piecewise"
    )
    model(rows(256, 1024))
    start = time.monotonic()
    handle.warmup()
    assert time.monotonic() - start < 20
    x = rows(100, 1024)
    close(model(x), reference(x))


@torch.no_grad()
def test_torchs_own_door_replays_too():
    model = Rows().to("cuda")
    reference = copy.deepcopy(model)
    options = {
        "backend": "eager",
        "splitting_ops": ["gpu_tests::mix"],
        "disable_cache": True,
        "cudagraph_mode": "piecewise",
        "cudagraph_capture_sizes": [4, 8],
        "cudagraph_num_of_warmups": 0,
    }
    run = torch.compile(model, backend=tp.PiecewiseCompileBackend(**options), dynamic=True, fullgraph=True)
    for size in (5, 3, 4, 8):
        x = rows(size)
        close(run(x), reference(x))
