"""What a trace assumes of dynamic sizes: sizes 0 and 1 under each policy, unbacked sizes, promises."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.errors import ConfigError, DynamicDimError, GraphBreakError, GuardError
from torch_piecewise.ranges import UNBOUNDED, Range
from torch_piecewise.size_limits import index_limits, squeezed_dims
from torch_piecewise.testing import RecordingCompiler
from torch_piecewise.torch_private.settings import patched

pytestmark = pytest.mark.usefixtures("no_grad")

POLICIES = ("backed", "unbacked", "backed_size_oblivious")
SIZES = (5, 0, 1, 2, 20)


def compiled(function: Callable[..., Tensor], **fields: Any) -> Any:
    return tp.compile(
        function, **{"backend": "eager", "dynamic_arg_dims": {"x": 0}, "splitting_ops": [], **fields}
    )


def rows(n: int) -> Tensor:
    return torch.randn(n, 3)


def plain(x: Tensor) -> Tensor:
    return torch.sin(x) * x.shape[0]


def branching(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] > 10 else x * 3


def special_one(x: Tensor) -> Tensor:
    return x + 1 if x.shape[0] == 1 else x * 3


def extended(x: Tensor) -> Tensor:
    return torch.cat([x, x[:1]]).cumsum(0)


def squeezed(x: Tensor) -> Tensor:
    return x.sin().squeeze(0) * 2


def squeezed_everywhere(x: Tensor) -> Tensor:
    return torch.squeeze(x[:, :1].cos())


def fixed(x: Tensor) -> Tensor:
    return x + torch.ones(5, 3)


# How many traces serve SIZES, by policy (backed, unbacked, backed_size_oblivious); None: none can.
TRACES: dict[Callable[..., Tensor], tuple[int, int | None, int]] = {
    plain: (3, 1, 1),
    extended: (3, 1, 2),
    branching: (4, None, 2),
    special_one: (3, None, 2),
    squeezed: (3, 2, 2),
    squeezed_everywhere: (3, 2, 2),
}
CASES = [
    pytest.param(function, policy, traces, id=f"{function.__name__}-{policy}")
    for function, row in TRACES.items()
    for policy, traces in zip(POLICIES, row, strict=True)
    if traces is not None
]


@pytest.mark.parametrize("first", [5, 1, 0])
@pytest.mark.parametrize(("function", "policy", "traces"), CASES)
def test_sizes_0_and_1_are_right_under_every_policy(
    function: Callable[..., Tensor], policy: str, traces: int, first: int
) -> None:
    call = compiled(function, dynamic_shapes=policy)
    for n in (first, *SIZES):
        x = rows(n)
        assert torch.equal(call(x), function(x))
    assert tp.program_of(call).stats.traces == traces


@pytest.mark.inductor
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("function", [squeezed, squeezed_everywhere, extended])
def test_compiled_code_is_right_for_sizes_0_and_1(function: Callable[..., Tensor], policy: str) -> None:
    call = compiled(function, dynamic_shapes=policy, backend="inductor", compile_threads=1)
    for n in (5, 1, 0, 2):
        x = rows(n)
        torch.testing.assert_close(call(x), function(x))


def small_apart(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] < 4 else x * 3


def turned(x: Tensor) -> Tensor:
    return torch.relu(x.sin().t().contiguous())


def twice_of_four(x: Tensor) -> Tensor:
    cut = scaled(x.sin())
    return cut * 2 if x.shape[0] < 4 else cut.cos()


@tp.splitting_op("dynamic_shapes_test::scale", fake=torch.empty_like)
def scaled(x: Tensor) -> Tensor:
    """Twice ``x``."""
    return x * 2


def parts(*texts: str) -> list[tuple[str, Range]]:
    ends = [text.split("-") for text in texts]
    return [("submod_0", Range(int(a), int(b) if b else UNBOUNDED)) for a, b in ends]


RANGES: dict[str, Any] = {"compile_ranges_endpoints": [8, 16], "compile_sizes": [2, 12]}


@pytest.mark.parametrize("policy", ["backed", "backed_size_oblivious"])
def test_a_trace_is_compiled_for_the_ranges_and_sizes_that_its_calls_can_have(policy: str) -> None:
    compiler = RecordingCompiler()
    call = compiled(small_apart, backend=compiler, dynamic_shapes=policy, disable_cache=True, **RANGES)
    for n in (3, 5, 2, 12, 30, 8):
        assert torch.equal(call(x := rows(n)), small_apart(x))
    assert tp.program_of(call).stats.traces == 2
    few, many = parts("1-8", "2-2"), parts("1-8", "9-16", "17-", "12-12")
    assert compiler.compiled == [*few, *many]


def test_a_size_of_1_that_is_traced_apart_is_compiled_for_itself() -> None:
    compiler = RecordingCompiler()
    fields: dict[str, Any] = {"dynamic_shapes": "backed_size_oblivious", "disable_cache": True}
    call = compiled(squeezed, backend=compiler, compile_ranges_endpoints=[1, 8], **fields)
    for n in (5, 1, 9):
        assert torch.equal(call(x := rows(n)), squeezed(x))
    assert compiler.compiled[:2] == parts("2-8", "9-")
    assert {str(one) for _piece, one in compiler.compiled[2:]} <= {"[1, 1]", "[0, inf]"}


@pytest.mark.inductor
def test_size_0_is_not_served_by_code_for_size_1() -> None:
    call = compiled(plain, backend="inductor", compile_threads=1, compile_ranges_endpoints=[1, 8])
    for n in (5, 0, 1, 0, 9):
        x = rows(n)
        torch.testing.assert_close(call(x), plain(x))


def test_a_warm_start_has_the_ranges_of_the_first_one(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"cache_dir": tmp_path, "splitting_ops": ["dynamic_shapes_test::scale"]}
    compilers = [RecordingCompiler() for _ in range(2)]
    for compiler in compilers:
        call = compiled(twice_of_four, backend=compiler, **fields, **RANGES)
        for n in (3, 5, 2, 12, 30, 8):
            assert torch.equal(call(x := rows(n)), twice_of_four(x))
    assert compilers[1].compiled == []
    sizes = [entry.program.sizes for entry in tp.program_of(call).entries]
    assert {(" ".join(map(str, one.ranges)), one.exact) for one in sizes} == {
        ("[1, 8]", (2,)),
        ("[1, 8] [9, 16] [17, inf]", (12,)),
    }


@pytest.mark.inductor
@pytest.mark.parametrize("function", [turned, small_apart])
def test_inductor_compiles_what_a_trace_can_have_only(function: Callable[..., Tensor]) -> None:
    call = compiled(function, backend="inductor", compile_threads=1, disable_cache=True, **RANGES)
    for n in (5, 1, 12, 30, 3):
        x = rows(n)
        torch.testing.assert_close(call(x), function(x))


def test_which_squeezes_ask_for_a_size_of_1() -> None:
    def asks(x: Tensor) -> Tensor:
        y = x[None].squeeze(0)  # a dim that is 1 whatever x is: no question
        return torch.squeeze(y, dim=(0, 1)).unsqueeze(0).squeeze((1,))

    graphs: list[Any] = []
    with patched(torch.fx.experimental._config, {"backed_size_oblivious": True}):
        x = rows(5)
        torch._dynamo.mark_dynamic(x, 0)
        torch.compile(asks, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)(x)
    found = list(squeezed_dims(graphs[0]))
    assert [re.sub(r"s\d+", "s", one.text) for one in found] == ["Ne(s, 1)", "Ne(s, 1)"]
    assert all("test_dynamic_shapes.py" in one.where for one in found)


@pytest.mark.parametrize("first", [5, 1])
def test_a_squeeze_that_size_1_would_change_is_shown_by_evaluate_guards(first: int) -> None:
    call = compiled(squeezed, evaluate_guards=True)
    message = (
        r"(?s)do.* not treat all sizes.*Ne\(x.size\(0\), 1\) .asked by .*test_dynamic_shapes.py.*squeeze\(0\)"
    )
    with pytest.raises(GuardError, match=message):
        for n in (first, 1):
            call(rows(n))


@pytest.mark.parametrize("function", [branching, special_one])
@pytest.mark.parametrize("fields", [{"dynamic_shapes": "unbacked"}, {"mark_unbacked_dims": {"x": 0}}])
def test_a_model_may_not_ask_about_a_size_of_which_nothing_is_assumed(
    function: Callable[..., Tensor], fields: dict[str, Any]
) -> None:
    message = (
        r"(?s)The model asks about a size of which nothing may be assumed, at "
        r".*test_dynamic_shapes.py:\d+ .return x.*"
        r"expected: code that does the same for every size, or torch._check.*"
        r"got: the question (u\d+ > 10|Eq\(u\d+, 1\))\n.*backed_size_oblivious'.* keeps a guard instead"
    )
    with pytest.raises(GraphBreakError, match=message):
        compiled(function, **fields)(rows(5))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_that_fixes_a_dynamic_size_is_told_so(policy: str) -> None:
    message = (
        "(?s)Dim 0 of argument 'x' was declared dynamic, but the model fixes its size at 5"
        ".*remove dim 0 of 'x'"
    )
    with pytest.raises(DynamicDimError, match=message):
        compiled(fixed, dynamic_shapes=policy)(rows(5))


# -- marked dims and shared symbols


def test_a_marked_dim_is_unbacked_and_the_others_are_not() -> None:
    def mixed(x: Tensor, y: Tensor) -> Tensor:
        return (x.sum() + y) * 2 if y.shape[0] > 3 else x.sum() + y

    call = compiled(mixed, dynamic_arg_dims={"x": 0, "y": 0}, mark_unbacked_dims={"x": 0})
    for n, m in ((5, 6), (1, 7), (0, 2), (9, 1)):
        x, y = torch.randn(n), torch.randn(m)
        assert torch.equal(call(x, y), mixed(x, y))
    assert tp.program_of(call).stats.traces == 2  # y's branch; x never needed one


def test_dims_of_one_symbol_are_one_size() -> None:
    def summed(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    call = compiled(summed, dynamic_arg_dims={"x": {0: "n"}, "y": {0: "n"}}, on_guard_failure="error")
    for n in (4, 1, 0, 9):
        x, y = rows(n), rows(n)
        assert torch.equal(call(x, y), x + y)
    with pytest.raises(
        GuardError, match=r"(?s)not one the model was traced for.*y.size\(0\)=1, x.size\(0\)=4"
    ):
        call(rows(4), rows(1))


# -- 32-bit indexing


def widened(x: Tensor) -> Tensor:
    return x[:, None] + torch.zeros(2**16, dtype=torch.int8)


def test_a_size_that_32_bits_cannot_index_is_an_error_before_anything_runs() -> None:
    call = compiled(widened, assume_32_bit_indexing=True)
    small = torch.ones(3, dtype=torch.int8)
    assert torch.equal(call(small), widened(small))
    message = (
        r"(?s)too large for assume_32_bit_indexing\n  expected: 65536\*x.size\(0\) <= 2147483647\n"
        r"  got: x.size\(0\)=32768\n  to do: set assume_32_bit_indexing=False"
    )
    with pytest.raises(ConfigError, match=message):
        call(torch.ones(2**15, dtype=torch.int8))  # two thousand million elements


def test_a_first_call_that_32_bits_cannot_index_is_an_error_too() -> None:
    with pytest.raises(ConfigError, match="too large for assume_32_bit_indexing"):
        compiled(widened, assume_32_bit_indexing=True)(torch.ones(2**15, dtype=torch.int8))


def test_a_tensor_of_fixed_size_that_32_bits_cannot_index_is_told_with_its_line() -> None:
    def huge(x: Tensor) -> Tensor:
        return x.sum() + torch.zeros(1).expand(2**31).as_strided((2,), (2**31,))[0]

    message = "(?s)assume_32_bit_indexing.*a tensor of 2147483649 elements, from .*test_dynamic_shapes"
    with pytest.raises(ConfigError, match=message):
        compiled(huge, assume_32_bit_indexing=True)(rows(2))


def test_limits_count_strides_and_not_only_elements() -> None:
    def strided(x: Tensor) -> Tensor:
        return x.t()[::2].sum()

    graphs: list[Any] = []
    torch._dynamo.reset()
    torch.compile(strided, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=True)(rows(4))
    texts = [re.sub(r"s\d+", "s", one.text) for one in index_limits(graphs[0])]
    assert len(texts) >= 2
    assert all(text.endswith(" <= 2147483647") for text in texts)


def written(x: Tensor, cache: Tensor) -> Tensor:
    cache[: x.shape[0]].copy_(x)
    return x + cache[: x.shape[0]]


def test_a_cache_is_written_up_to_a_dynamic_size() -> None:
    model = compiled(written)
    for n in (*SIZES, 32):
        x, cache = rows(n), torch.zeros(32, 3)
        assert torch.equal(model(x, cache), x + x)
        assert torch.equal(cache[:n], x) and not cache[n:].any()
    assert len(tp.program_of(model).entries) <= 3  # torch 2.11 traces sizes 0 and 1 apart
    with pytest.raises(RuntimeError):
        model(rows(33), torch.zeros(32, 3))


def test_under_torch_compile_the_limit_holds_too() -> None:
    call = torch.compile(
        widened,
        backend="piecewise",
        dynamic=True,
        options={"backend": "eager", "assume_32_bit_indexing": True, "splitting_ops": []},
    )
    small = torch.ones(3, dtype=torch.int8)
    assert torch.equal(call(small), widened(small))
    with pytest.raises(ConfigError, match="too large for assume_32_bit_indexing"):
        call(torch.ones(2**15, dtype=torch.int8))
