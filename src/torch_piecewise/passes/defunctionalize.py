"""Turns functionalized custom operators back into in-place calls, where nobody can see the difference.

Tracing replaces ``op(x, out)``, which writes ``out``, by a higher-order call that clones ``out``, runs
``op`` on the clone and returns it. Inductor undoes this as its very last step; compilers that do not, and
passes that want to see the operator itself, need it done here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.effects import FUNCTIONALIZED, Aliases, reads_sizes_only, written_inputs
from torch_piecewise.passes.functionalized import FunctionalizedCall, read_call, write_call

_COPY = torch.ops.aten.copy_.default


@dataclass(frozen=True)
class Defunctionalize(GraphPass):
    """Replaces ``auto_functionalized`` and ``auto_functionalized_v2`` by the operator they wrap.

    A call is replaced only if for every tensor it would write

    - nobody reads the old contents afterwards, through whichever view;
    - no other argument of the call may share its memory;
    - it is made in the graph, or is an input that the graph overwrites with the call's result (or with
      something later) in the end, and the result is no output of the graph.

    Any other call is left as it is: it stays right, at the price of its clones.
    """

    def __call__(self, graph: fx.Graph) -> int:
        replaced = 0
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target not in FUNCTIONALIZED:
                continue
            call = read_call(node)
            if call is None or not _Memory(graph, call).may_write():
                continue
            write_call(call)
            _drop_copies_to_self(call)
            replaced += 1
        return replaced


def _drop_copies_to_self(call: FunctionalizedCall) -> None:
    for base in call.bases:
        if base is None:
            continue
        for user in list(base.users):
            if user.target is _COPY and user.args[:2] == (base, base):
                user.replace_all_uses_with(base)
                user.graph.erase_node(user)


class _Memory:
    """Whether one functionalized call may write to its bases."""

    def __init__(self, graph: fx.Graph, call: FunctionalizedCall) -> None:
        self._call = call
        self._aliases = Aliases(graph)
        self._place = {node: place for place, node in enumerate(graph.nodes)}

    def may_write(self) -> bool:
        return all(
            base is None or (self._is_apart(base) and self._may_write(index, base))
            for index, base in enumerate(self._call.bases)
        )

    def _is_apart(self, base: fx.Node) -> bool:
        """Whether no other argument of the call may share memory with ``base``."""
        others: list[fx.Node] = [other for other in self._call.bases if other is not None]
        others.remove(base)
        fx.map_arg(dict(self._call.read), others.append)
        return not any(self._aliases.may_share(base, other) for other in others)

    def _may_write(self, index: int, base: fx.Node) -> bool:
        shared = self._aliases.of(base)
        if any(node.op == "get_attr" for node in shared):
            return False
        given = [node for node in shared if node.op == "placeholder"]
        if not given:
            return not self._later_uses(shared)
        return given == [base] and self._may_write_input(index, base)

    def _may_write_input(self, index: int, base: fx.Node) -> bool:
        later = self._later_uses(self._aliases.of(base))
        copies = [node for node in later if node.target is _COPY and node.args[0] is base]
        writers = [node for node in later if self._writes_into(node, base)]
        if len(copies) != 1 or writers != copies:
            return False
        copy, source = copies[0], copies[0].args[1]
        if not isinstance(source, fx.Node) or self._aliases.may_share(source, base):
            return False
        if any(self._place[node] < self._place[copy] for node in later):
            return False
        return all(self._result_may_move(result, copy, index) for result in self._call.results[index])

    def _result_may_move(self, result: fx.Node, copy: fx.Node, index: int) -> bool:
        """Whether ``result`` may live in the input's memory from now on."""
        uses = [user for node in self._aliases.of(result) for user in node.users]
        if any(user.op == "output" or self._writes_into(user, result) for user in uses):
            return False
        kept = copy.args[1] in self._call.results[index]
        return kept or all(self._place[user] < self._place[copy] for user in uses)

    def _writes_into(self, node: fx.Node, base: fx.Node) -> bool:
        return any(self._aliases.may_share(item, base) for item in written_inputs(node))

    def _later_uses(self, shared: list[fx.Node]) -> list[fx.Node]:
        """Nodes after the call that read or write the contents of ``shared``; making a view does neither."""
        call = self._place[self._call.node]
        members = set(shared)
        uses = {user for node in shared for user in node.users if self._place[user] > call}
        return sorted(
            (
                user
                for user in uses
                if not reads_sizes_only(user) and not (user in members and not written_inputs(user))
            ),
            key=self._place.__getitem__,
        )
