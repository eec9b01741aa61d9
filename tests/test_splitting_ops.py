"""``splitting_op``: a Python function becomes a torch op that is a place to cut."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_piecewise.errors import SplitError
from torch_piecewise.splitting_ops import SplittingOp, splitting_op, splitting_op_for

_numbers = itertools.count()


def fresh(stem: str = "op") -> str:
    """A name no other test uses: ops live as long as the process."""
    return f"tp_test_splitting::{stem}_{next(_numbers)}"


def double_into(x: Tensor, out: Tensor) -> None:
    out.copy_(x * 2)


def scaled(x: Tensor, by: float = 2.0) -> Tensor:
    return x * by


def scaled_fake(x: Tensor, by: float = 2.0) -> Tensor:
    return torch.empty_like(x)


def writing_op() -> SplittingOp[..., None]:
    return splitting_op(fresh("double_into"), mutates_args=("out",))(double_into)


def returning_op() -> SplittingOp[..., Tensor]:
    return splitting_op(fresh("scaled"), fake=scaled_fake)(scaled)


class TestCalling:
    def test_an_op_that_writes_its_output_argument_runs_its_body(self) -> None:
        op, out = writing_op(), torch.zeros(3)
        assert op(torch.arange(3.0), out) is None
        assert out.tolist() == [0.0, 2.0, 4.0]

    def test_an_op_that_returns_a_tensor_takes_defaults_and_keywords(self) -> None:
        op = returning_op()
        assert op(torch.ones(2)).tolist() == [2.0, 2.0]
        assert op(x=torch.ones(2), by=5.0).tolist() == [5.0, 5.0]

    def test_it_keeps_the_name_and_documentation_of_the_function(self) -> None:
        op = returning_op()
        assert (op.__name__, op.__module__) == ("scaled", __name__)
        assert op.name in repr(op)

    def test_the_body_is_the_undecorated_function(self) -> None:
        assert writing_op().body is double_into

    def test_a_mutated_argument_is_seen_by_autograd_as_changed_in_place(self) -> None:
        op, out = writing_op(), torch.zeros(3)
        before = out._version
        op(torch.ones(3), out)
        assert out._version > before

    def test_several_tensors_can_be_returned(self) -> None:
        def halves(x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:1].clone(), x[1:].clone()

        op = splitting_op(fresh(), fake=lambda x: (x.new_empty(1), x.new_empty(x.shape[0] - 1)))(halves)
        assert [part.tolist() for part in op(torch.arange(3.0))] == [[0.0], [1.0, 2.0]]

    def test_fake_tensors_never_reach_the_body(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            x, out = torch.empty(4), torch.empty(4)
            assert writing_op()(x, out) is None
            assert returning_op()(x).shape == (4,)

    def test_torch_operations_need_no_fake(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        op = splitting_op(fresh())(scaled)
        with FakeTensorMode():
            assert op(torch.empty(4)).shape == (4,)

    def test_a_fake_can_be_registered_later(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        op = splitting_op(fresh())(scaled)

        @op.register_fake
        def longer(x: Tensor, by: float = 2.0) -> Tensor:
            return x.new_empty(x.shape[0] + 1)

        with FakeTensorMode():
            assert op(torch.empty(4)).shape == (5,)
        with pytest.raises(SplitError, match="its fake does not take the op's arguments"):
            op.register_fake(lambda: None)

    def test_a_device_specific_op_refuses_other_devices(self) -> None:
        op = splitting_op(fresh(), fake=scaled_fake, device_types="cuda")(scaled)
        with pytest.raises(NotImplementedError, match="CPU"):
            op(torch.ones(2))

    def test_defining_and_calling_imports_no_dynamo(self) -> None:
        code = (
            "import sys, torch\n"
            "from torch import Tensor\n"
            "from torch_piecewise.splitting_ops import splitting_op\n"
            "@splitting_op('tp_test_import::f', mutates_args=('out',))\n"
            "def f(x: Tensor, out: Tensor) -> None:\n"
            "    out.copy_(x)\n"
            "@splitting_op('tp_test_import::g', fake=torch.empty_like)\n"
            "def g(input: Tensor) -> Tensor:\n"
            "    return input + 1\n"
            "f(torch.ones(1), torch.zeros(1)); g(torch.ones(1))\n"
            "print('torch._dynamo' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


class TestLookingUp:
    def test_an_overload_a_packet_and_the_op_itself_give_the_registration(self) -> None:
        op = writing_op()
        packet = getattr(torch.ops.tp_test_splitting, op.name.split("::")[1])
        assert splitting_op_for(op.op) is op
        assert splitting_op_for(packet) is op
        assert splitting_op_for(op) is op

    @pytest.mark.parametrize(
        "target", [torch.ops.aten.add.Tensor, torch.ops.aten.add, torch.add, "aten::add", None, 3]
    )
    def test_anything_else_gives_none(self, target: object) -> None:
        assert splitting_op_for(target) is None


class TestTracing:
    def trace(self, fn: Callable[..., Any], *args: Any) -> tuple[Any, list[object]]:
        targets: list[object] = []

        def backend(graph: torch.fx.GraphModule, _inputs: list[object]) -> Callable[..., Any]:
            targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
            return graph.forward

        return torch.compile(fn, backend=backend, fullgraph=True)(*args), targets

    def test_dynamo_sees_one_node_with_the_ops_target_for_a_written_output(self) -> None:
        op = writing_op()

        def fn(x: Tensor) -> Tensor:
            out = torch.empty_like(x)
            op(x, out)
            return out + 1

        result, targets = self.trace(fn, torch.ones(2))
        assert result.tolist() == [3.0, 3.0]
        assert [splitting_op_for(target) for target in targets].count(op) == 1

    def test_dynamo_sees_one_node_with_the_ops_target_for_a_returned_tensor(self) -> None:
        op = returning_op()
        result, targets = self.trace(lambda x: op(x + 1, by=3.0), torch.ones(2))
        assert result.tolist() == [6.0, 6.0]
        assert [splitting_op_for(target) for target in targets].count(op) == 1

    def test_a_method_of_a_module_can_call_an_op_kept_in_a_global(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return GLOBAL_OP(x)

        result, targets = self.trace(Model(), torch.ones(2))
        assert result.tolist() == [2.0, 2.0]
        assert splitting_op_for(targets[0]) is GLOBAL_OP

    def test_an_op_that_only_writes_survives_dead_code_elimination(self) -> None:
        op = writing_op()
        graph = torch.fx.Graph()
        x, out = graph.placeholder("x"), graph.placeholder("out")
        graph.call_function(op.op, (x, out))
        graph.output(None)
        assert not graph.eliminate_dead_code()


GLOBAL_OP = splitting_op("tp_test_splitting::kept_in_a_global", fake=scaled_fake)(scaled)


class TestGradients:
    def test_an_op_that_writes_refuses_inputs_that_need_gradients(self) -> None:
        op = writing_op()
        with pytest.raises(SplitError, match=r"no gradient.*'x'") as caught:
            op(torch.ones(2, requires_grad=True), torch.zeros(2))
        assert "torch.no_grad()" in str(caught.value)

    def test_it_refuses_them_inside_a_list_as_well(self) -> None:
        def add_into(parts: list[Tensor], out: Tensor) -> None:
            out.copy_(torch.stack(parts).sum(0))

        op = splitting_op(fresh(), mutates_args=("out",))(add_into)
        with pytest.raises(SplitError, match="'parts'"):
            op([torch.ones(2), torch.ones(2, requires_grad=True)], torch.zeros(2))

    def test_it_refuses_them_while_it_is_traced(self) -> None:
        op = writing_op()

        def fn(x: Tensor) -> Tensor:
            out = torch.empty_like(x)
            op(x, out)
            return out

        with pytest.raises(Exception, match="no gradient"):
            torch.compile(fn, backend="eager", fullgraph=True)(torch.ones(2, requires_grad=True))

    def test_it_takes_them_where_gradients_are_off(self) -> None:
        op, out = writing_op(), torch.zeros(2)
        with torch.no_grad():
            op(torch.ones(2, requires_grad=True), out)
        assert out.tolist() == [2.0, 2.0]

    def test_an_op_that_returns_raises_in_backward_and_not_before(self) -> None:
        result = returning_op()(torch.ones(2, requires_grad=True))
        with pytest.raises(SplitError, match=r"no backward formula") as caught:
            torch.autograd.backward(result.sum())
        assert "register_autograd" in str(caught.value)

    def test_a_registered_formula_is_used(self) -> None:
        op = returning_op()

        def remember(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
            ctx.by = inputs[1]

        op.register_autograd(lambda ctx, grad: (grad * ctx.by, None), setup_context=remember)
        x = torch.ones(2, requires_grad=True)
        torch.autograd.backward(op(x, 7.0).sum())
        assert x.grad is not None
        assert x.grad.tolist() == [7.0, 7.0]

    def test_a_registered_formula_is_used_in_compiled_code(self) -> None:
        op = returning_op()
        op.register_autograd(lambda ctx, grad: (grad * 2, None))
        x = torch.ones(2, requires_grad=True)
        compiled = torch.compile(lambda x: op(x + 0) * 3, backend="aot_eager", fullgraph=True)
        torch.autograd.backward(compiled(x).sum())
        assert x.grad is not None
        assert x.grad.tolist() == [6.0, 6.0]

    def test_a_formula_for_an_op_that_writes_is_refused(self) -> None:
        with pytest.raises(SplitError, match=r"writes to its arguments.*'out'"):
            writing_op().register_autograd(lambda ctx, grad: grad)


class TestDefinitionMistakes:
    def test_the_decorator_without_a_name(self) -> None:
        with pytest.raises(SplitError, match="without a name"):
            splitting_op(double_into)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["attention", "a::b::c", "a:b", "::x", "a::", "a b::c", "a::b.out", ""])
    def test_a_name_that_is_not_two_words(self, name: str) -> None:
        with pytest.raises(SplitError, match="name") as caught:
            splitting_op(name, mutates_args=("out",))(double_into)
        assert "namespace::name" in str(caught.value)

    def test_something_that_is_no_function(self) -> None:
        with pytest.raises(SplitError, match="Python function"):
            splitting_op(fresh(), mutates_args=("out",))(3)  # type: ignore[arg-type]

    def test_a_parameter_without_annotation(self) -> None:
        def untyped(x, out: Tensor) -> None:  # type: ignore[no-untyped-def]
            out.copy_(x)

        with pytest.raises(SplitError, match="has parameters without annotations"):
            splitting_op(fresh(), mutates_args=("out",))(untyped)

    def test_a_mutated_argument_that_does_not_exist(self) -> None:
        with pytest.raises(SplitError, match="outt"):
            splitting_op(fresh(), mutates_args=("outt",))(double_into)

    def test_mutates_args_given_as_one_string(self) -> None:
        with pytest.raises(SplitError, match=r"mutates_args.*\n.*expected"):
            splitting_op(fresh(), mutates_args="out")(double_into)

    def test_keyword_only_tensors(self) -> None:
        def keyword(x: Tensor, *, out: Tensor) -> None:
            out.copy_(x)

        with pytest.raises(SplitError, match=r"keyword-only.*'out'"):
            splitting_op(fresh(), mutates_args=("out",))(keyword)

    def test_a_body_without_a_fake_that_needs_data(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        def looking(x: Tensor) -> Tensor:
            return x * float(x.numpy().max())

        op = splitting_op("tp_test_splitting::looking")(looking)
        with FakeTensorMode(), pytest.raises(SplitError) as caught:
            op(torch.empty(3))
        assert str(caught.value).startswith(
            "tp_test_splitting::looking has no fake, and its body cannot run on tensors without data\n"
            "  expected: a body of torch operations on its arguments alone, or a fake\n"
            "  got: "
        )
        assert str(caught.value).endswith(
            "\n  to do: say what it returns: fake=lambda q, k, v: torch.empty_like(q)"
        )

    def test_an_op_that_neither_writes_nor_returns(self) -> None:
        def nothing(x: Tensor) -> None:
            return None

        with pytest.raises(SplitError, match="removed as dead code"):
            splitting_op(fresh())(nothing)

    def test_a_fake_with_other_parameters(self) -> None:
        with pytest.raises(SplitError, match="fake") as caught:
            splitting_op(fresh(), fake=lambda x: x)(scaled)
        assert "(x, by)" in str(caught.value)

    def test_a_name_that_torch_or_another_library_already_has(self) -> None:
        with pytest.raises(SplitError, match="aten::relu"):
            splitting_op("aten::relu", fake=torch.empty_like)(copied_relu)

    def test_an_unknown_device(self) -> None:
        with pytest.raises(SplitError, match="unknown kind of device"):
            splitting_op(fresh(), fake=scaled_fake, device_types=("cpu", "abacus"))(scaled)

    def test_keyword_only_numbers_are_fine(self) -> None:
        def shifted(x: Tensor, *, by: float) -> Tensor:
            return x + by

        op = splitting_op(fresh(), fake=lambda x, *, by: torch.empty_like(x))(shifted)
        assert op(torch.zeros(1), by=2.0).tolist() == [2.0]

    def test_a_failed_definition_leaves_the_name_free(self) -> None:
        name = fresh()
        with pytest.raises(SplitError) as held:
            splitting_op(name, fake=lambda: None)(scaled)
        assert held.value  # as a notebook holds the last error
        assert splitting_op(name, fake=scaled_fake)(scaled)(torch.ones(1)).tolist() == [2.0]


def copied_relu(input: Tensor) -> Tensor:
    return input.clamp(min=0)


class TestSchemas:
    def test_a_schema_can_be_given_for_functions_without_annotations(self) -> None:
        def untyped(x, out):  # type: ignore[no-untyped-def]
            out.copy_(x)

        op = splitting_op(fresh(), schema="(Tensor x, Tensor(a!) out) -> ()")(untyped)
        out = torch.zeros(1)
        op(torch.ones(1), out)
        assert out.tolist() == [1.0]

    def test_a_schema_with_other_argument_names_is_refused(self) -> None:
        with pytest.raises(SplitError, match="argument names") as caught:
            splitting_op(fresh(), schema="(Tensor a, Tensor(a!) out) -> ()")(double_into)
        assert "(x, out)" in str(caught.value)

    def test_a_schema_that_disagrees_with_mutates_args_is_refused(self) -> None:
        with pytest.raises(SplitError, match="mutates_args"):
            splitting_op(fresh(), mutates_args=("x",), schema="(Tensor x, Tensor(a!) out) -> ()")(double_into)

    @pytest.mark.parametrize("schema", ["f(Tensor x) -> Tensor", "(Tensor x", "(Tnsr x) -> Tensor"])
    def test_a_malformed_schema_is_refused(self, schema: str) -> None:
        with pytest.raises(SplitError, match="schema"):
            splitting_op(fresh(), schema=schema, fake=scaled_fake)(scaled)


class TestDefiningAgain:
    def test_the_same_function_defined_again_as_by_a_reload_runs_the_new_body(self) -> None:
        name, source = fresh(), "def f(x: Tensor, out: Tensor) -> None:\n    out.copy_(x * {factor})\n"

        def load(factor: int) -> SplittingOp[..., None]:
            scope: dict[str, Any] = {"Tensor": Tensor, "__name__": "a_user_module"}
            exec(source.format(factor=factor), scope)
            return splitting_op(name, mutates_args=("out",))(scope["f"])

        old, new, out = load(2), load(3), torch.zeros(1)
        old.op(torch.ones(1), out)
        assert out.tolist() == [3.0]
        assert new is old
        assert new.body(torch.ones(1), out) is None

    def test_another_function_under_the_same_name_is_refused(self) -> None:
        op = writing_op()

        def other(x: Tensor, out: Tensor) -> None:
            out.copy_(x)

        with pytest.raises(SplitError, match="already defined") as caught:
            splitting_op(op.name, mutates_args=("out",))(other)
        assert "double_into" in str(caught.value)

    def test_the_same_function_with_another_signature_is_refused(self) -> None:
        op = writing_op()
        with pytest.raises(SplitError, match="another schema"):
            splitting_op(op.name, mutates_args=("x", "out"))(double_into)

    def test_the_same_function_for_other_devices_is_refused(self) -> None:
        op = writing_op()
        with pytest.raises(SplitError, match="device"):
            splitting_op(op.name, mutates_args=("out",), device_types="cuda")(double_into)

    def test_threads_that_define_the_same_op_get_the_same_registration(self) -> None:
        name, results = fresh(), []
        barrier = threading.Barrier(4)

        def define() -> None:
            barrier.wait()
            results.append(splitting_op(name, mutates_args=("out",))(double_into))

        threads = [threading.Thread(target=define) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert len(set(map(id, results))) == 1
