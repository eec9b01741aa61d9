"""Static graphs on a real GPU."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs import (
    BatchDescriptor,
    CaptureWhen,
    CUDAGraphDispatcher,
    CUDAGraphOptions,
    CUDAGraphWrapper,
    CUDAStaticGraph,
    DynamicInput,
    Extent,
    OutputPolicy,
    RunnerOptions,
    StaticGraphRunner,
    capture_plan,
    cut_step,
    default_capture_sizes,
    forward_context,
    runs_eagerly,
)
from torch_piecewise.errors import StaticGraphError

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

PIECEWISE, FULL = CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL


@pytest.fixture
def pool(gpu):
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    return CUDAStaticGraph(gpu)


def ones(*size):
    return torch.ones(*size, device="cuda")


def warm(fn):
    """Call once outside of a capture, so that libraries have made their handles."""
    fn()
    torch.cuda.synchronize()


class Layers(torch.nn.Module):
    """Some layers, each with a cut in the middle."""

    def __init__(self, width=256, depth=4, dtype=torch.float32):
        super().__init__()
        make = {"device": "cuda", "dtype": dtype}
        self.first = torch.nn.ModuleList(torch.nn.Linear(width, width, **make) for _ in range(depth))
        self.second = torch.nn.ModuleList(torch.nn.Linear(width, width, **make) for _ in range(depth))
        self.attends = 0
        self.attend = cut_step(self._attend)

    def _attend(self, q, out):
        self.attends += 1
        out.copy_(torch.softmax(q, dim=-1))

    def forward(self, x):
        for first, second in zip(self.first, self.second, strict=True):
            q = torch.relu(first(x))
            out = torch.empty_like(q)
            self.attend(q, out)
            x = x + second(out)
        return x


def runner_for(model, sizes, pool, mode=PIECEWISE, **options):
    return StaticGraphRunner(
        lambda size: model,
        CUDAGraphDispatcher(mode, sizes),
        pool,
        {0: DynamicInput()},
        {0: [Extent(0)]},
        options=RunnerOptions(**options),
    )


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_nothing_is_carried_out_while_recording_and_replays_read_the_captured_memory(pool):
    x = ones(4)
    with pool.capture() as graph:
        y = x.add_(1) * 2
    assert x.tolist() == [1] * 4
    graph.replay()
    assert (x.tolist(), y.tolist()) == ([2] * 4, [4] * 4)
    x.fill_(10)
    graph.replay()
    assert y.tolist() == [22] * 4


def test_the_callers_stream_stays_current(pool):
    x, before = ones(1), torch.cuda.current_stream()
    with pool.capture():
        x.add_(1)
        assert torch.cuda.current_stream() != before
    assert torch.cuda.current_stream() == before
    with pytest.raises(KeyError), pool.capture():
        raise KeyError
    assert torch.cuda.current_stream() == before


def test_weak_tensors_read_pool_memory_and_let_it_be_used_again(pool):
    x = ones(1 << 20)
    with pool.capture() as first:
        y = x + 1
    weak = pool.weak(y.view(1024, 1024).t())
    assert (weak.data_ptr(), weak.shape, weak.stride()) == (y.data_ptr(), (1024, 1024), (1, 1024))
    first.replay()
    assert weak.sum().item() == 2 << 20
    del y
    with pool.capture() as second:
        z = x + 2
    assert z.data_ptr() == weak.data_ptr()
    second.replay()
    assert weak[3, 5].item() == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weak_tensors_keep_their_dtype(pool, dtype):
    x = ones(64).to(dtype)
    with pool.capture() as graph:
        y = x.clone()
    weak = pool.weak(y)
    graph.replay()
    assert weak is not y
    assert weak.dtype is dtype
    assert torch.equal(weak.view(torch.uint8), x.view(torch.uint8))


def test_memory_outside_the_pool_is_not_made_weak(pool):
    x = ones(4)
    with pool.capture():
        x.add_(1)
    assert pool.weak(x) is x
    parameter = torch.nn.Parameter(x)
    assert pool.weak(parameter) is parameter


def test_memory_in_use_rises_with_a_capture(pool):
    x = ones(32 << 20)
    before = pool.memory_in_use()
    with pool.capture() as graph:
        y = x * 2
    assert pool.memory_in_use() - before >= x.nbytes
    graph.replay()
    assert y[-1].item() == 2


def test_random_numbers_are_drawn_anew_in_each_replay(pool):
    x = torch.zeros(1024, device="cuda")
    warm(lambda: torch.rand_like(x))
    with pool.capture() as graph:
        y = torch.rand_like(x)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(first, y)


def test_an_exception_in_a_capture_leaves_everything_usable(pool):
    x = ones(1024)
    with pool.capture() as kept:
        y = x * 3
    with pytest.raises(ValueError, match="in the middle"), pool.capture():
        _ = x + 1
        raise ValueError("in the middle")
    with pool.capture() as graph:
        z = x + 5
    for each in (kept, graph):
        each.replay()
    assert (y[0].item(), z[0].item()) == (3, 6)


def test_a_synchronisation_in_a_capture_is_an_error_and_leaves_everything_usable(pool):
    x = ones(1024)
    with pool.capture() as kept:
        y = x * 3
    for _ in range(2):
        with pytest.raises(RuntimeError), pool.capture():
            x.sum().item()
    with pool.capture() as graph:
        z = x + 5
    for each in (kept, graph):
        each.replay()
    assert (y[0].item(), z[0].item()) == (3, 6)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert ones(1 << 20).sum().item() == 1 << 20


def test_memory_can_be_captured_into_again_after_everything_was_given_up(pool):
    x = ones(1024)
    for value in range(3):
        with pool.capture() as graph:
            y = x + value
        graph.replay()
        assert y[0].item() == 1 + value
        graph.reset()
        del y


def test_a_pool_can_be_shared_with_graphs_captured_elsewhere(gpu):
    handle, x, theirs = torch.cuda.graph_pool_handle(), ones(1024), torch.cuda.CUDAGraph()
    with torch.cuda.graph(theirs, pool=handle):
        y = x * 2
    pool = CUDAStaticGraph(gpu, pool=handle)
    with pool.capture() as ours:
        z = x * 3
    theirs.replay()
    ours.replay()
    assert (y[0].item(), z[0].item()) == (2, 3)


def test_a_call_while_somebody_else_captures_the_stream_is_refused(pool):
    graph, x = torch.cuda.CUDAGraph(), ones(4)
    with torch.cuda.graph(graph):
        x.add_(1)
        with pytest.raises(StaticGraphError, match="being captured"), pool.turn():
            pass


def test_other_threads_may_use_the_device_during_a_capture(pool):
    x, stop, wrong = ones(1024), threading.Event(), []

    def work():
        while not stop.is_set():
            if (torch.ones(4096, device="cuda") * 2).sum().item() != 8192:
                wrong.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        graphs = []
        for _ in range(20):
            with pool.capture() as graph:
                y = x * 2 + 1
            graphs.append((graph, y))
    finally:
        stop.set()
        thread.join()
    for graph, y in graphs:
        graph.replay()
        assert y[7].item() == 3
    assert wrong == []


def test_garbage_collection_of_the_process_is_left_alone(pool):
    x, collections = ones(4), []

    def notice(phase, info):
        if phase == "start" and info["generation"] == 2:
            collections.append(1)

    gc.callbacks.append(notice)
    before = (gc.collect, gc.isenabled(), gc.get_freeze_count())
    try:
        for _ in range(3):
            with pool.capture():
                x.add_(1)
        assert collections == []
        with pool.capture(collect=True):
            x.add_(1)
        assert collections
    finally:
        gc.callbacks.remove(notice)
    assert (gc.collect, gc.isenabled(), gc.get_freeze_count()) == before


def test_eager_bodies_may_synchronise_between_graphs(pool):
    x = ones(8)
    attend = runs_eagerly(lambda q: q * q.sum().item())
    plan = capture_plan(lambda: attend(x + 1) * 0.5, pool)
    assert plan.outputs.tolist() == [16] * 8
    x.fill_(0)
    plan.replay()
    assert plan.outputs.tolist() == [4] * 8
    assert len(plan.graphs) == 2


def test_a_wrapper_captures_and_replays(pool):
    model = torch.nn.Linear(64, 64, device="cuda")
    wrapper = CUDAGraphWrapper(model, FULL, CUDAGraphOptions(check_addresses=True), pool)
    x = torch.randn(8, 64, device="cuda")
    with torch.no_grad(), forward_context(FULL, BatchDescriptor(8)):
        warm(lambda: model(x))
        kept = [wrapper(x) for _ in range(2)]
        expected = model(x)
        x.mul_(2)
        close(wrapper(x), model(x))
        for result in kept:
            close(result, expected)
        with pytest.raises(StaticGraphError, match=r"args\[0\]"):
            wrapper(x.clone())
    assert wrapper.in_features == 64


def test_held_results_are_refused_when_asked_for(pool):
    wrapper = CUDAGraphWrapper(lambda x: x * 2, FULL, CUDAGraphOptions(outputs=OutputPolicy.REFUSE), pool)
    x = ones(4)
    with forward_context(FULL, BatchDescriptor(4)):
        kept = wrapper(x)
        with pytest.raises(StaticGraphError, match="still held"):
            wrapper(x)
        assert kept.tolist() == [2] * 4
        del kept
        assert wrapper(x).tolist() == [2] * 4


@pytest.mark.parametrize("mode", [PIECEWISE, FULL, CUDAGraphMode.FULL_AND_PIECEWISE])
@torch.inference_mode()
def test_a_runner_gives_eagers_results_at_every_size(pool, mode):
    model = Layers()
    runner = runner_for(model, [1, 2, 4, 8, 16], pool, mode)
    runner.warmup(example=(torch.randn(3, 256, device="cuda"),))
    model.attends, kept = 0, []
    for size in (16, 1, 7, 3, 8, 2, 16):
        x = torch.randn(size, 256, device="cuda")
        kept.append((x, runner(x)))
    assert model.attends == (0 if mode is FULL else 7 * 4)
    for x, y in kept:
        close(y, model(x))
    x = torch.randn(17, 256, device="cuda")
    close(runner(x), model(x))


@torch.inference_mode()
def test_a_runner_captures_lazily(pool):
    model = Layers()
    runner = runner_for(model, [4, 8], pool, capture=CaptureWhen.ON_CALL)
    for size in (3, 3, 3, 8, 8, 8, 3):
        x = torch.randn(size, 256, device="cuda")
        close(runner(x), model(x))
    assert len(runner.captured()) == 2
    runner.clear()
    x = torch.randn(3, 256, device="cuda")
    for _ in range(3):
        close(runner(x), model(x))


@torch.inference_mode()
def test_calls_on_several_streams_and_threads_take_turns(pool):
    model = Layers(width=1024)
    runner = runner_for(model, [32, 64], pool)
    runner.warmup(example=(torch.randn(3, 1024, device="cuda"),))
    wrong = []

    @torch.inference_mode()
    def work(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(20):
                x = torch.randn(16 + 16 * ((seed + turn) % 4), 1024, device="cuda")
                got, expected = runner(x), model(x)
                if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
                    wrong.append((seed, turn))

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@torch.inference_mode()
def test_35_sizes_take_little_more_memory_than_the_largest_and_less_than_20_seconds(gpu):
    used = []
    sizes = default_capture_sizes(256)
    model = Layers(width=2048, depth=8, dtype=torch.bfloat16)
    x = torch.randn(256, 2048, device="cuda", dtype=torch.bfloat16)
    warm(lambda: model(x))
    for chosen in ([256], sizes):
        pool = CUDAStaticGraph(gpu)
        runner = runner_for(model, chosen, pool)
        start = time.monotonic()
        runner.warmup(example=(x,))
        seconds = time.monotonic() - start
        used.append(pool._memory.bytes())
        torch.testing.assert_close(runner(x), model(x), rtol=5e-2, atol=5e-2)
        runner.clear()
    outputs = sum(size * 2048 * 2 for size in sizes)
    assert len(sizes) == 35
    assert seconds < 20
    assert used[1] <= 1.2 * used[0] + outputs


@torch.inference_mode()
def test_pieces_compiled_by_inductor_can_be_captured(inductor, pool):
    model = Layers(depth=2)
    halves = [
        (torch.compile(lambda x, m=first: torch.relu(m(x))), torch.compile(lambda x, o, m=second: x + m(o)))
        for first, second in zip(model.first, model.second, strict=True)
    ]

    def line(x):
        for before, after in halves:
            q = before(x)
            out = torch.empty_like(q)
            model.attend(q, out)
            x = after(x, out)
        return x

    runner = StaticGraphRunner(
        lambda size: line,
        CUDAGraphDispatcher(CUDAGraphMode.FULL_AND_PIECEWISE, [4, 8]),
        pool,
        {0: DynamicInput()},
        {0: [Extent(0)]},
    )
    runner.warmup(example=(torch.randn(2, 256, device="cuda"),))
    for size in (3, 8):
        x = torch.randn(size, 256, device="cuda")
        close(runner(x), model(x))
