from __future__ import annotations

import functools
import operator
import random

import pytest
import torch
from torch import fx

from torch_piecewise.passes.defunctionalize import Defunctionalize

from .graphs import Functionalized, functionalized, lines, ops, text_of

aten = torch.ops.aten


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (8, 4)))


def rewritten(graph: Functionalized) -> int:
    """Run the pass, and check that outputs and written inputs stay what they were."""
    outputs, inputs = graph.run()
    matches = Defunctionalize()(graph.module.graph)
    graph.module.graph.lint()
    graph.module.recompile()
    outputs_after, inputs_after = graph.run()
    for before, after in zip([*outputs, *inputs], [*outputs_after, *inputs_after], strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    return matches


def into_new(x: torch.Tensor) -> torch.Tensor:
    out = x.sin()
    ops.scale_into(x, out, 2.0)
    return out.relu()


def test_an_output_buffer_made_in_the_graph_is_written_directly():
    graph = functionalized(into_new, x())
    assert text_of(graph.module) == lines("""
        arg0_1 = placeholder
        sin = aten.sin.default(arg0_1)
        auto_functionalized_v2 = auto_functionalized_v2(pw_passes.scale_into.default, \
            x=arg0_1, k=2.0, _out_base_index=0, _all_bases=[sin])
        getitem_1 = getitem(auto_functionalized_v2, 1)
        relu = aten.relu.default(getitem_1)
        return (relu,)
    """)
    assert rewritten(graph) == 1
    assert text_of(graph.module) == lines("""
        arg0_1 = placeholder
        sin = aten.sin.default(arg0_1)
        scale_into_default = pw_passes.scale_into.default(x=arg0_1, out=sin, k=2.0)
        relu = aten.relu.default(sin)
        return (relu,)
    """)


def test_an_input_that_is_copied_back_is_written_directly():
    def forward(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return ops.bump(total, x) + 1

    graph = functionalized(forward, x(), x())
    assert text_of(graph.module) == lines("""
        arg0_1 = placeholder
        arg1_1 = placeholder
        auto_functionalized_v2 = auto_functionalized_v2(pw_passes.bump.default, \
            x=arg1_1, _acc_base_index=0, _all_bases=[arg0_1])
        getitem = getitem(auto_functionalized_v2, 0)
        getitem_1 = getitem(auto_functionalized_v2, 1)
        add = aten.add.Tensor(getitem, 1)
        copy_ = aten.copy_.default(arg0_1, getitem_1)
        return (add,)
    """)
    assert rewritten(graph) == 1
    assert text_of(graph.module) == lines("""
        arg0_1 = placeholder
        arg1_1 = placeholder
        bump_default = pw_passes.bump.default(acc=arg0_1, x=arg1_1)
        add = aten.add.Tensor(bump_default, 1)
        return (add,)
    """)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_chain_of_writes_to_one_input_needs_no_copy(dynamic):
    def forward(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return ops.bump(total, x) + ops.bump(total, x + 1) + ops.bump(total, x + 2)

    graph = functionalized(forward, x(), x(), dynamic=dynamic)
    assert rewritten(graph) == 3
    assert "auto_functionalized" not in text_of(graph.module)
    assert "copy_" not in text_of(graph.module)


def test_a_slice_of_a_buffer_becomes_a_slice():
    def forward(x: torch.Tensor) -> torch.Tensor:
        out = x.sin()
        ops.scale_into(x[:3], out[:3], 2.0)
        return out + 1

    graph = functionalized(forward, x())
    assert "_out_slice_dim=0, _out_slice_start=0, _out_slice_end=3" in text_of(graph.module)
    assert rewritten(graph) == 1
    assert lines("""
        slice_tensor = aten.slice.Tensor(sin, 0, 0, 3)
        scale_into_default = pw_passes.scale_into.default(x=slice_1, out=slice_tensor, k=2.0)
        add = aten.add.Tensor(sin, 1)
    """) in text_of(graph.module)
    view = next(node for node in graph.module.graph.nodes if node.name == "slice_tensor")
    assert view.meta["val"].shape == (3, 4)


def test_a_slice_with_symbolic_bounds_adds_no_guard():
    def forward(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        out = x.sin()
        ops.scale_into(x[: n.shape[0]], out[: n.shape[0]], 2.0)
        return out + 1

    graph = functionalized(forward, x(9, 4), x(5), dynamic=True)
    shapes = (
        graph.module.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)[0]
        .meta["val"]
        .fake_mode.shape_env
    )
    before = (len(shapes.guards), dict(shapes.replacements))
    assert rewritten(graph) == 1
    assert (len(shapes.guards), dict(shapes.replacements)) == before


def test_another_view_becomes_as_strided():
    def forward(x: torch.Tensor) -> torch.Tensor:
        out = x.view(4, 8).sin()
        ops.scale_into(x, out.t(), 2.0)
        return out + 1

    graph = functionalized(forward, x())
    assert rewritten(graph) == 1
    assert "aten.as_strided.default(sin, (8, 4), (1, 8), 0)" in text_of(graph.module)
    view = next(node for node in graph.module.graph.nodes if "as_strided" in node.name)
    assert (view.meta["val"].shape, view.meta["val"].stride()) == ((8, 4), (1, 8))


def test_a_list_of_buffers_is_written_directly_and_several_results_are_told_apart():
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outs = [x.sin(), x.sin()]
        one, two = ops.split_into(x, outs)
        return one * 2, two * 3, outs[0] + outs[1]

    graph = functionalized(forward, x())
    assert rewritten(graph) == 1
    text = text_of(graph.module)
    assert "pw_passes.split_into.default(x=arg0_1, outs=[sin, sin_1])" in text
    assert "getitem_default" not in text
    assert text.count("getitem(split_into_default, ") == 2


def test_the_first_kind_of_functionalized_call_is_rewritten_too():
    import torch._inductor.config as inductor_config

    with inductor_config.patch(enable_auto_functionalized_v2=False):
        graph = functionalized(into_new, x())
    assert "auto_functionalized(pw_passes.scale_into.default, x=arg0_1, out=sin, k=2.0)" in text_of(
        graph.module
    )
    assert rewritten(graph) == 1
    assert "pw_passes.scale_into.default(x=arg0_1, out=sin, k=2.0)" in text_of(graph.module)


def test_what_inductor_needs_to_keep_strides_comes_along():
    graph = functionalized(into_new, x())
    rewritten(graph)
    node = next(node for node in graph.module.graph.nodes if node.name == "scale_into_default")
    args, kwargs = node.meta["eager_input_vals"]
    assert args == ()
    assert [*kwargs] == ["x", "out", "k"]
    assert kwargs["out"].shape == (8, 4)
    assert kwargs["k"] == 2.0


def handmade(forward) -> Functionalized:
    """A graph with a functionalized call in it that plain tracing would not make."""
    graph = fx.Graph()
    forward(graph)
    module = fx.GraphModule({}, graph)
    inputs = [x() for _ in graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        _Describe(module).run(*inputs)
    return Functionalized(module, inputs)


class _Describe(fx.Interpreter):
    """Writes metadata as tracing does, from real tensors."""

    def run_node(self, n: fx.Node) -> object:
        n.meta["val"] = super().run_node(n)
        return n.meta["val"]


def bump(graph: fx.Graph, base: fx.Node, value: fx.Node) -> tuple[fx.Node, fx.Node]:
    """What the operator returned, and the new value of the base."""
    call = graph.call_function(
        torch.ops.higher_order.auto_functionalized_v2,
        (ops.bump.default,),
        {"x": value, "_acc_base_index": 0, "_all_bases": [base]},
    )
    return graph.call_function(operator.getitem, (call, 0)), graph.call_function(operator.getitem, (call, 1))


def old_value_read_later(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    base = graph.call_function(aten.sin.default, (given,))
    _, new = bump(graph, base, given)
    graph.output((new, graph.call_function(aten.cos.default, (base,))))


def old_value_read_later_through_a_view(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    base = graph.call_function(aten.sin.default, (given,))
    view = graph.call_function(aten.t.default, (base,))
    _, new = bump(graph, base, given)
    graph.output((new, graph.call_function(aten.cos.default, (view,))))


def old_value_read_later_through_a_later_view(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    base = graph.call_function(aten.sin.default, (given,))
    _, new = bump(graph, base, given)
    view = graph.call_function(aten.t.default, (base,))
    graph.output((new, graph.call_function(aten.cos.default, (view,))))


def base_is_a_view_read_later(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    whole = graph.call_function(aten.sin.default, (given,))
    base = graph.call_function(aten.view.default, (whole, [8, 4]))
    _, new = bump(graph, base, given)
    graph.output((new, graph.call_function(aten.cos.default, (whole,))))


def old_value_is_an_output(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    base = graph.call_function(aten.sin.default, (given,))
    _, new = bump(graph, base, given)
    graph.output((new, base))


def reads_what_it_writes(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    base = graph.call_function(aten.sin.default, (given,))
    _, new = bump(graph, base, base)
    graph.output((new,))


def input_that_nobody_copies_back(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    _, new = bump(graph, total, given)
    graph.output((graph.call_function(aten.cos.default, (new,)),))


def view_of_an_input(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    view = graph.call_function(aten.view.default, (total, [8, 4]))
    _, new = bump(graph, view, given)
    graph.call_function(aten.copy_.default, (total, new))
    graph.output((graph.call_function(aten.cos.default, (given,)),))


def input_read_before_it_is_copied_back(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    _, new = bump(graph, total, given)
    old = graph.call_function(aten.cos.default, (total,))
    graph.call_function(aten.copy_.default, (total, new))
    graph.output((old,))


def result_is_an_output(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    _, new = bump(graph, total, given)
    graph.call_function(aten.copy_.default, (total, new))
    graph.output((new,))


def result_read_after_something_else_was_copied(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    _, new = bump(graph, total, given)
    graph.call_function(aten.copy_.default, (total, given))
    graph.output((graph.call_function(aten.cos.default, (new,)),))


def turned_result_copied_back(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    _, new = bump(graph, total, given)
    turned = graph.call_function(aten.as_strided.default, (new, [8, 4], [1, 8]))
    graph.call_function(aten.copy_.default, (total, turned))
    graph.output((graph.call_function(aten.cos.default, (given,)),))


def input_written_again_after_it_was_copied_back(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    view = graph.call_function(aten.view.default, (total, [4, 8]))
    _, new = bump(graph, total, given)
    graph.call_function(aten.copy_.default, (total, new))
    graph.call_function(aten.mul_.Tensor, (view, 2))
    graph.output((graph.call_function(aten.cos.default, (new,)),))


def copied_twice(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    _, new = bump(graph, total, given)
    graph.call_function(aten.copy_.default, (total, new))
    graph.call_function(aten.copy_.default, (total, given))
    graph.output((graph.call_function(aten.cos.default, (new,)),))


def result_written_after_it_was_copied_back(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    _, new = bump(graph, total, given)
    graph.call_function(aten.copy_.default, (total, new))
    graph.call_function(aten.mul_.Tensor, (new, 2))
    graph.output((graph.call_function(aten.cos.default, (new,)),))


def own_view_copied_back(graph: fx.Graph) -> None:
    given = graph.placeholder("given")
    total = graph.placeholder("total")
    view = graph.call_function(aten.view.default, (total, [8, 4]))
    bump(graph, total, given)
    graph.call_function(aten.copy_.default, (total, view))
    graph.output((graph.call_function(aten.cos.default, (given,)),))


@pytest.mark.parametrize(
    "build",
    [
        old_value_read_later,
        old_value_read_later_through_a_view,
        old_value_read_later_through_a_later_view,
        base_is_a_view_read_later,
        old_value_is_an_output,
        reads_what_it_writes,
        input_that_nobody_copies_back,
        view_of_an_input,
        input_read_before_it_is_copied_back,
        result_is_an_output,
        result_read_after_something_else_was_copied,
        turned_result_copied_back,
        input_written_again_after_it_was_copied_back,
        copied_twice,
        result_written_after_it_was_copied_back,
        own_view_copied_back,
    ],
)
def test_a_call_stays_functional(build):
    graph = handmade(build)
    before = text_of(graph.module)
    assert rewritten(graph) == 0
    assert text_of(graph.module) == before


def test_sizes_of_the_old_value_may_be_read():
    def build(graph: fx.Graph) -> None:
        given = graph.placeholder("given")
        base = graph.call_function(aten.sin.default, (given,))
        _, new = bump(graph, base, given)
        size = graph.call_function(aten.sym_size.int, (base, 0))
        graph.output((new, size))

    assert rewritten(handmade(build)) == 1


def test_running_the_pass_again_finds_nothing():
    graph = functionalized(into_new, x())
    assert rewritten(graph) == 1
    assert rewritten(graph) == 0


def test_a_written_constant_stays_functional():
    graph = fx.Graph()
    given = graph.placeholder("given")
    _, new = bump(graph, graph.create_node("get_attr", "weight"), given)
    graph.output((new,))
    module = fx.GraphModule({"weight": x()}, graph)
    _Describe(module).run(x())
    assert rewritten(Functionalized(module, [x()])) == 0


def test_two_views_of_one_buffer_are_written_directly():
    def forward(x: torch.Tensor) -> torch.Tensor:
        out = x.sin()
        ops.split_into(x[:4], [out[:4], out[4:]])
        return out + 1

    graph = functionalized(forward, x())
    assert rewritten(graph) == 1
    assert "outs=[slice_tensor, slice_tensor_1]" in text_of(graph.module)


def test_one_buffer_given_to_two_calls_is_written_by_the_last_only():
    def build(graph: fx.Graph) -> None:
        given = graph.placeholder("given")
        base = graph.call_function(aten.sin.default, (given,))
        _, first = bump(graph, base, given)
        _, second = bump(graph, base, given)
        graph.output((first, second))

    graph = handmade(build)
    assert rewritten(graph) == 1
    assert text_of(graph.module) == lines("""
        given = placeholder
        sin_default = aten.sin.default(given)
        auto_functionalized_v2 = auto_functionalized_v2(pw_passes.bump.default, \
            x=given, _acc_base_index=0, _all_bases=[sin_default])
        getitem = getitem(auto_functionalized_v2, 0)
        getitem_1 = getitem(auto_functionalized_v2, 1)
        bump_default = pw_passes.bump.default(acc=sin_default, x=given)
        return (getitem_1, sin_default)
    """)


def test_random_programs_compute_the_same_afterwards():
    kinds = ["new", "slice", "input", "chain", "keep"]

    def program(steps: list[str], x: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = []
        buffer = torch.zeros_like(x)
        for step in steps:
            if step == "new":
                buffer = torch.zeros_like(x)
                ops.scale_into(x, buffer, 2.0)
            elif step == "slice":
                ops.scale_into(x[1:4], buffer[2:5], 3.0)
            elif step == "input":
                outputs.append(ops.bump(total, buffer))
            elif step == "chain":
                outputs.append(ops.bump(buffer, x) + total)
            else:
                outputs.append(buffer + 1)
        return (*outputs, buffer * 2)

    pick = random.Random(0)
    for _ in range(4):
        steps = pick.choices(kinds, k=6)
        rewritten(functionalized(functools.partial(program, steps), x(), x()))
