from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.graphs import Stack, traced
from torch_piecewise.errors import FingerprintError
from torch_piecewise.graph_bytes import from_bytes, to_bytes
from torch_piecewise.splitting import split_graph


def test_a_graph_comes_back_node_for_node() -> None:
    def model(x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, x).view(-1)[1:]
        return torch.cat([y, y.new_zeros(2)], dim=0).to(torch.float64)

    graph = traced(model, torch.randn(3, 3))
    again = from_bytes(to_bytes(graph))
    assert [(n.op, n.name, n.target) for n in again.graph.nodes] == [
        (n.op, n.name, n.target) for n in graph.graph.nodes
    ]
    x = torch.randn(3, 3)
    assert torch.equal(again(x)[0], graph(x)[0])


def test_constants_and_where_nodes_come_from_travel_along() -> None:
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: x + torch.tensor([1.0, 2.0]))(torch.randn(2))
    x = torch.randn(2)
    assert torch.equal(from_bytes(to_bytes(graph))(x), graph(x))
    with torch.no_grad():
        pieces = split_graph(traced(Stack(1), torch.randint(0, 50, (3,))), ["tests::attention"])[1]
    again = from_bytes(to_bytes(pieces[0].graph))
    assert any("graphs.py" in (node.meta.get("stack_trace") or "") for node in again.graph.nodes)


def test_bytes_are_read_in_another_process(tmp_path: Path) -> None:
    graph = traced(lambda x: torch.relu(x) * 2, torch.randn(3))
    (tmp_path / "graph").write_bytes(to_bytes(graph))
    program = (
        "import sys, torch; from pathlib import Path; from torch_piecewise.graph_bytes import from_bytes\n"
        "graph = from_bytes(Path(sys.argv[1]).read_bytes())\n"
        "assert torch.equal(graph(torch.tensor([-1.0, 3.0]))[0], torch.tensor([0.0, 6.0]))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "graph")], check=True)


def test_what_another_process_cannot_find_is_refused_by_name() -> None:
    class Local:
        pass

    with pytest.raises(FingerprintError, match=r"This program cannot be kept(?s:.*)Local"):
        to_bytes(Local())
