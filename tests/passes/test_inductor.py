"""The manager inside Inductor itself. Slow: each test compiles C++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx

from torch_piecewise.errors import FingerprintError, PassError
from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.context import get_pass_context, pass_context
from torch_piecewise.passes.defunctionalize import Defunctionalize
from torch_piecewise.passes.manager import PassManager
from torch_piecewise.passes.noop_elimination import NoopElimination
from torch_piecewise.ranges import Range
from torch_piecewise.torch_private.passes import POST_GRAD_HOOK

from .graphs import ops

pytestmark = pytest.mark.inductor
aten = torch.ops.aten


def compiled(function: Any, manager: PassManager, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, options={POST_GRAD_HOOK: manager, **options})


@dataclass(frozen=True)
class Seen(GraphPass):
    """Replaces sin by cos for small sizes; says for which range it ran."""

    def __call__(self, graph: fx.Graph) -> int:
        if get_pass_context().compile_range.end > 8:
            return 0
        found = graph.find_nodes(op="call_function", target=aten.sin.default)
        for node in found:
            node.target = aten.cos.default
        return len(found)


@pytest.mark.parametrize("passes", [[NoopElimination()], [NoopElimination(), Defunctionalize()]])
def test_a_model_that_writes_buffers_and_inputs_computes_what_eager_computes(passes):
    def forward(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        ops.scale_into(x.sin(), out, 2.0)
        ops.scale_into(x[1:3], out[2:4], 5.0)
        return ops.bump(total, out).view(x.shape) + torch.slice_scatter(x, out + 1, 0, 0, x.shape[0])

    manager = PassManager(passes)
    function = compiled(forward, manager, fx_graph_cache=False)
    x, total = torch.randn(8, 4), torch.randn(8, 4)
    expected_total, actual_total = total.clone(), total.clone()
    with torch.no_grad():
        expected = forward(x, expected_total)
        actual = function(x, actual_total)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual_total, expected_total)
    matches = {record.name: record.matches for record in manager.records}
    assert matches.get("defunctionalize", 3) == 3


def test_two_ranges_do_not_share_one_of_inductors_cache_entries(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    manager = PassManager([Seen()])
    x = torch.randn(8)
    results = []
    for range in (Range(1, 8), Range(9, 64), Range(1, 8)):
        with pass_context(range):
            results.append(compiled(torch.sin, manager)(x))
    torch.testing.assert_close(results, [x.cos(), x.sin(), x.cos()])
    # The third was kept from the first, so no pass had to run.
    assert [record.range for record in manager.records if record.name == "seen"] == [
        Range(1, 8),
        Range(9, 64),
    ]


def test_a_pass_that_breaks_the_graph_is_named_by_the_compile(tmp_path):
    def breaks(graph: fx.Graph) -> None:
        raise ValueError("no such kernel")

    function = compiled(lambda x: x.sin() + 1, PassManager([breaks]), fx_graph_cache=False)
    with pytest.raises(Exception, match="The pass breaks raised an error") as caught:
        function(torch.randn(4))
    inner: BaseException | None = caught.value
    seen = []
    while inner is not None:
        seen.append(type(inner))
        inner = inner.__cause__ or inner.__context__ or getattr(inner, "inner_exception", None)
    assert PassError in seen or "PassError" in str(caught.value)


def test_a_lambda_is_refused_where_its_result_would_be_kept():
    function = compiled(lambda x: x.sin() + 2, PassManager([lambda graph: None]))
    with pytest.raises(Exception, match=r"a lambda") as caught:
        function(torch.randn(4))
    assert FingerprintError.__name__ in f"{type(caught.value).__name__} {caught.value}"
