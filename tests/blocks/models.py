"""Models with repeated blocks of every kind, and how many calls of each are copied."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as torch code has it
from torch.utils.checkpoint import checkpoint

import torch_piecewise as tp

WIDTH = 8
DEPTH = 5


@tp.splitting_op("block_tests::attention", mutates_args=("out",))
def attention(q: Tensor, k: Tensor, out: Tensor, layer: str) -> None:
    """A cut with an output argument and a label."""
    out.copy_(torch.softmax(q @ k.t(), -1) @ k)


class Base(nn.Module):
    """A linear layer to build blocks around."""

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index = index
        self.name = f"layers.{index}"
        self.linear = nn.Linear(WIDTH, WIDTH)


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(x))


class ReadsItsIndex(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.index


class BranchesOnItsIndex(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if self.index % 2 else torch.relu(self.linear(x))


class ThirdIsOther(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.index == 3:
            x = x.tanh()
        return self.linear(x)


class Labelled(Base):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        attention(self.linear(x), x, out, self.name)
        return x + out


class LabelIsReadToo(Base):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        attention(self.linear(x), x, out, self.name)
        return x + out if self.name.endswith("3") else x - out


class LabelIsComposed(Base):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        attention(self.linear(x), x, out, f"{self.name}.attention")
        return x + out


class LabelGoesThroughAFunction(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x + _attend(self.linear(x), x, layer=self.name)


def _attend(q: Tensor, k: Tensor, layer: str) -> Tensor:
    out = torch.empty_like(q)
    attention(q, k, out, layer)
    return out


class OneLetterLabel(Base):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.name = "abcdefgh"[index]

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        attention(self.linear(x), x, out, self.name)
        return x + out


class LabelOfTheAttentionInside(Base):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.inner = Labelled(index)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.linear(x))


class Buffered(Base):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.register_buffer("scale", torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


class FourthHasAnotherBuffer(Buffered):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        if index == 3:
            self.scale = torch.rand(1)


class ChangesItsBuffer(Buffered):
    def forward(self, x: Tensor) -> Tensor:
        self.scale.mul_(0.5)
        return self.linear(x) * self.scale


class Holder:
    """Keeps what the model puts into it."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []


HOLDER = Holder()


class AddsToAHolder(Base):
    """Changes a list that the model made in the trace and that it reaches without an argument."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        HOLDER.found.append(y)
        return y


class ReadsAHolder(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + HOLDER.found[-1]


class FillsAHolder(nn.Module):
    """Gives the holder a new list, which blocks read; adds to it halfway."""

    def __init__(self, block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block(index) for index in range(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        HOLDER.found = [x]
        for index, layer in enumerate(self.layers):
            if index == 4:
                HOLDER.found.append(x)
            x = layer(x)
        return x


class Counts(Base):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


class Dropped(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, self.training)


class ReturnsATuple(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        y = self.linear(x)
        return y, x, None


class ReturnsADict(Base):
    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"y": y, "parts": [y.relu(), x], "count": 2}


class ReturnsAView(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y, y.t()


class ReturnsItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x


class ReturnsItsWeight(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.linear.weight


@dataclasses.dataclass
class Output:
    y: Tensor
    more: Tensor


class ReturnsADataclass(Base):
    def forward(self, x: Tensor) -> Output:
        return Output(self.linear(x), x)


class ChangesItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return self.linear(x)


class ChangesItsInputsShape(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        x.unsqueeze_(0)
        return y


class TakesKeywords(Base):
    def forward(self, x: Tensor, *, factor: float = 1.0, mask: Tensor | None = None) -> Tensor:
        y = self.linear(x) * factor
        return y if mask is None else y * mask


class TakesItsPosition(Base):
    def forward(self, x: Tensor, position: int) -> Tensor:
        return self.linear(x) * position


class TakesAList(Base):
    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(x)
        return self.linear(x)


class ReadsAList(Base):
    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        return self.linear(x) + seen[-1]


class WritesItsCache(Base):
    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        cache[: x.shape[0]].copy_(x)
        return self.linear(x) + cache[: x.shape[0]]


class Cache:
    def __init__(self) -> None:
        self.keys = [torch.rand(32, WIDTH) for _ in range(DEPTH)]
        self.length = 3

    def update(self, x: Tensor, index: int) -> Tensor:
        self.keys[index][: x.shape[0]].copy_(x)
        return self.keys[index][: x.shape[0]]


class GrowingCache(Cache):
    def update(self, x: Tensor, index: int) -> Tensor:
        self.keys[index] = x
        return self.keys[index]


class UsesACache(Base):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.mlp = Plain()

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        return self.mlp(self.linear(x) + cache.update(x, self.index))


class ReadsACachesLength(Base):
    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        return self.linear(x) * cache.length


class Nested(Base):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.parts = nn.ModuleList([Plain(), Plain(), Plain()])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.linear(x)


class Gated(Base):
    """A mixture of experts, each token with every expert's weight."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.experts = nn.ModuleList(Plain() for _ in range(3))
        self.gate = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.gate(x), -1)
        return sum(expert(x) * weights[:, i : i + 1] for i, expert in enumerate(self.experts))


class UnevenGated(Base):
    """As many experts as its place: no two blocks alike."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.experts = nn.ModuleList(Plain() for _ in range(index + 1))

    def forward(self, x: Tensor) -> Tensor:
        for expert in self.experts:
            x = expert(x)
        return x


class Picks(Base):
    """A top-k choice: indices that depend on data, sizes that do not."""

    def forward(self, x: Tensor) -> Tensor:
        values, indices = torch.topk(self.linear(x), 3, dim=-1)
        return x.scatter(-1, indices, values)


class CountsPositives(Base):
    """A size that depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.nonzero(x > 0).shape[0]


class Sized(Base):
    def forward(self, x: Tensor) -> Tensor:
        n, width = x.shape
        return self.linear(x).view(n, 2, width // 2).transpose(0, 1).reshape(n, width) * (n + 1)


class Halves(Base):
    def forward(self, x: Tensor) -> Tensor:
        one, other = self.linear(x).chunk(2, -1)
        return torch.cat([other, one], dim=-1)


class WithoutGrad(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.linear(x)


class LeavesGradOff(Base):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return self.linear(x)


class Autocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.linear(x).float()


class Random(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.rand_like(x)


_SWITCHES = {"scale": 2.0}


class ReadsAGlobal(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * _SWITCHES["scale"]


_CURRENT = 1.0


class ReadsAGlobalThatMoves(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * _CURRENT


class MovesAGlobal(nn.Module):
    """Binds a global anew between the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ReadsAGlobalThatMoves(index) for index in range(7))

    def forward(self, x: Tensor) -> Tensor:
        global _CURRENT  # noqa: PLW0603 - what the test is about
        for index, layer in enumerate(self.layers):
            if index == 5:
                _CURRENT = 2.0
            x = layer(x)
        return x


class Helper:
    def __init__(self, factor: float) -> None:
        self.factor = factor


class HasAHelper(Base):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.helper = Helper(2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.helper.factor


class HelpersDiffer(HasAHelper):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.helper = Helper(2.0 if index < 3 else 3.0)


class HasAFunction(Base):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.act = torch.relu if index < 3 else torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class ReadsItsParent(Base):
    """Asks the model whether it is the last block."""

    def forward(self, x: Tensor) -> Tensor:
        if self is self.parent[0].layers[-1]:
            return x
        return self.linear(x)


class Asks(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if self.training else self.linear(x).tanh()


class SomeHaveABias(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=index != 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Kept(Base):
    """Keeps what it computed, for others to read."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.linear(x)
        return self.kept


class Stack(nn.Module):
    """``depth`` blocks one after another; ``step`` says how each is called."""

    def __init__(
        self,
        block: Callable[[int], nn.Module],
        step: Callable[[nn.Module, Tensor, int], Tensor] | None = None,
        depth: int = DEPTH,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(block(index) for index in range(depth))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for index, layer in enumerate(self.layers):
            x = layer(x) if self.step is None else self.step(layer, x, index)
        return x


class WithCache(Stack):
    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x, cache)
        return x


class WithCaches(Stack):
    def forward(self, x: Tensor, caches: list[Tensor]) -> Tensor:
        x = self.first(x)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache)
        return x


class WithList(Stack):
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.first(x)
        seen: list[Tensor] = [x]
        for layer in self.layers:
            x = layer(x, seen)
        return x, seen


class Collects(Stack):
    """Keeps what each block returned, outside of the blocks."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.first(x)
        seen = []
        for layer in self.layers:
            seen.append(x)
            x = layer(x)
        return (x, *seen)


class CountsOutside(Stack):
    """Changes an object of its own between the blocks."""

    def __init__(self, block: Callable[[int], nn.Module]) -> None:
        super().__init__(block)
        self.done = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
            self.done += 1
        return x


class CalledFromManyLines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (Sized(i) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        x = self.one(x)
        x = self.two(x)
        y = self.three(
            x,
        )
        return self.four(y) + self.last(x)

    def last(self, x: Tensor) -> Tensor:
        return self.four(x)


class Interleaved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Plain(i) if i % 2 else Sized(i) for i in range(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Tied(Stack):
    """All blocks hold one weight."""

    def __init__(self) -> None:
        super().__init__(Plain)
        for layer in self.layers:
            layer.linear.weight = self.layers[0].linear.weight


class TiedToTheFirst(Stack):
    """The second block's weight is that of the layer before all blocks."""

    def __init__(self) -> None:
        super().__init__(Plain)
        self.layers[1].linear.weight = self.first.weight


class Shared(Stack):
    """All blocks hold one submodule with a buffer."""

    def __init__(self) -> None:
        super().__init__(Nested)
        rope = Buffered(0)
        for layer in self.layers:
            layer.parts[1] = rope


class UnevenWidths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (8, 8, 8, 4, 4, 4, 8)
        self.layers = nn.ModuleList(Sized2(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Sized2(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


def checkpointed(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    return checkpoint(layer, x, use_reentrant=False)


def twice(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    return layer(layer(x))


def first_of(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    return layer(x)[0]


def value_of(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    found = layer(x)
    return found["y"] + found["parts"][0] * found["count"]


def viewed(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    y, turned = layer(x)
    return y + turned.t()


def dataclassed(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    found = layer(x)
    return found.y + found.more


def cloned(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    return layer(x * 2)


def keyworded(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    return layer(x, factor=2.0, mask=x > 0)


def positioned(layer: nn.Module, x: Tensor, index: int) -> Tensor:
    return layer(x, index)


def hooked() -> Stack:
    model = Stack(Plain)
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, output: output * 2)
    return model


def one_hooked() -> Stack:
    model = Stack(Plain)
    model.layers[3].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return model


def one_training() -> Stack:
    model = Stack(Asks).eval()
    model.layers[3].train()
    return model


def patched_forward() -> Stack:
    model = Stack(Plain)
    layer = model.layers[3]
    layer.forward = lambda x: x * 2
    return model


def with_parents() -> Stack:
    model = Stack(ReadsItsParent)
    for layer in model.layers:
        layer.parent = [model]
    return model


def with_last() -> Stack:
    """Only the last block's switch is on."""
    model = Stack(ReadsItsIndex)
    for index, layer in enumerate(model.layers):
        layer.index = int(index == DEPTH - 1)
    return model
