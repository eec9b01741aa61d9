"""Graphs for the tests of passes: traced from small functions, read back as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from torch_piecewise.passes.text import graph_text

_library = torch.library.Library("pw_passes", "DEF")
_library.define("scale_into(Tensor x, Tensor(a!) out, float k) -> ()")
_library.define("bump(Tensor(a!) acc, Tensor x) -> Tensor")
_library.define("split_into(Tensor x, Tensor(a!)[] outs) -> (Tensor, Tensor)")
_library.define("note(Tensor x) -> ()")


@torch.library.impl(_library, "scale_into", "CPU")
def _scale_into(x: torch.Tensor, out: torch.Tensor, k: float) -> None:
    out.copy_(x * k)


@torch.library.impl(_library, "bump", "CPU")
def _bump(acc: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    acc.add_(x)
    return x * 3


@torch.library.impl(_library, "split_into", "CPU")
def _split_into(x: torch.Tensor, outs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    for number, out in enumerate(outs):
        out.copy_(x + number)
    return x - 1, x - 2


@torch.library.impl(_library, "note", "CPU")
def _note(x: torch.Tensor) -> None:
    pass


torch.library.register_fake("pw_passes::scale_into", lambda x, out, k: None)
torch.library.register_fake("pw_passes::bump", lambda acc, x: torch.empty_like(x))
torch.library.register_fake(
    "pw_passes::split_into", lambda x, outs: (torch.empty_like(x), torch.empty_like(x))
)
torch.library.register_fake("pw_passes::note", lambda x: None)

ops = torch.ops.pw_passes


def traced(function: Callable[..., Any], *inputs: torch.Tensor) -> fx.GraphModule:
    """The ATen graph of a function, with symbolic sizes."""
    return make_fx(function, tracing_mode="symbolic")(*inputs)


def text_of(module: fx.GraphModule | fx.Graph) -> str:
    return graph_text(module if isinstance(module, fx.Graph) else module.graph)


def lines(text: str) -> str:
    """A text as written in a test, without its indentation and that of continued lines."""
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines()) + "\n"


@dataclass
class Functionalized:
    """A functionalized graph as Inductor gets it, with real inputs for it."""

    module: fx.GraphModule
    inputs: list[Any]

    def run(self) -> tuple[list[Any], list[Any]]:
        """Outputs on clones of the inputs, and the clones afterwards."""
        clones = [item.clone() if isinstance(item, torch.Tensor) else item for item in self.inputs]
        return list(fx.Interpreter(self.module).run(*clones)), clones


def functionalized(
    function: Callable[..., Any], *inputs: torch.Tensor, dynamic: bool = False
) -> Functionalized:
    """What Inductor gets of a function that calls operators which write: no write left but final copies."""
    # Private, and the only way to such a graph: AOTAutograd under Dynamo.
    from torch._dynamo.backends.common import aot_autograd

    found: list[Functionalized] = []

    def compiler(module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        found.append(Functionalized(module, []))

        def run(*given: Any) -> Any:
            found[-1].inputs = [item.clone() if isinstance(item, torch.Tensor) else item for item in given]
            return module(*given)

        return run

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler, keep_inference_input_mutations=True)
    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    return found[-1]
