"""Whether nodes give their operators the arguments that these take, by name and number."""

from __future__ import annotations

from torch import fx

from torch_piecewise.torch_private.passes import is_overload, schema_of


def argument_problem(node: fx.Node) -> str | None:
    """What the operator's schema has against the node's arguments; None if nothing, or if there is none."""
    if node.op != "call_function" or not is_overload(node.target):
        return None
    schema = schema_of(node.target)
    by_place = [one for one in schema.arguments if not one.kwarg_only]
    if len(node.args) > len(by_place):
        # Few operators take any number, and only the text says so.
        return None if "..." in str(schema) else f"{_calls(node)} with {len(node.args)} arguments by position"
    given = {one.name for one in by_place[: len(node.args)]} | set(node.kwargs)
    missing = [one.name for one in schema.arguments if one.name not in given and not one.has_default_value()]
    if missing:
        return f"{_calls(node)} without {', '.join(missing)}"
    unknown = sorted(set(node.kwargs) - {one.name for one in schema.arguments})
    return f"{_calls(node)} with {', '.join(unknown)}, which it does not take" if unknown else None


def _calls(node: fx.Node) -> str:
    assert is_overload(node.target)
    takes = [
        f"{one.name}=..." if one.has_default_value() else one.name for one in schema_of(node.target).arguments
    ]
    return f"{node.name} calls {node.target}, which takes ({', '.join(takes)}),"
