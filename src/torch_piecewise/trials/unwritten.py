"""Outputs of a piece that hold no values yet: buffers that a cut op will write into."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from torch_piecewise.torch_private.ops import op_mutates

_ALLOCATIONS = frozenset(
    ["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"]
)
_VIEWS = frozenset(
    [
        "view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "transpose",
        "permute",
        "t",
        "flatten",
        "narrow",
        "expand",
        "getitem",
    ]
)


def unwritten_outputs(graph: GraphModule) -> frozenset[int]:
    """Positions of the outputs that are allocated in ``graph`` and written by nothing in it."""
    root: dict[Node, Node] = {}
    written: set[Node] = set()
    outputs: tuple[object, ...] = ()
    for node in graph.graph.nodes:
        name = _name(node)
        if name in _ALLOCATIONS:
            root[node] = node
        elif name in _VIEWS and node.args and node.args[0] in root:
            root[node] = root[node.args[0]]
        elif node.op == "output":
            outputs = tuple(node.args[0]) if isinstance(node.args[0], tuple | list) else (node.args[0],)
        elif _writes(node, name):
            written |= {root[one] for one in node.all_input_nodes if one in root}
    return frozenset(
        index
        for index, value in enumerate(outputs)
        if isinstance(value, Node) and value in root and root[value] not in written
    )


def _name(node: Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    name = str(getattr(node.target, "__name__", node.target))
    return name.partition(".")[0]


def _writes(node: Node, name: str) -> bool:
    if "out" in node.kwargs or op_mutates(node.target) or (name.startswith("i") and name in _IN_PLACE):
        return True
    return name == "setitem" or (name.endswith("_") and not name.endswith("__"))


_IN_PLACE = frozenset(
    ["iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"]
)
