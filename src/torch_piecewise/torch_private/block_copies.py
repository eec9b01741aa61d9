"""Copy what was traced for one block for another that is alike: nodes, their fake values, guards, the result.

Fake values are copied where they are plain. Where gradients, subclasses or labels are about, each copied
operation is run on fake tensors as Dynamo would run it, and only the walk through Python code is left out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._dynamo.utils import get_fake_value, set_example_value
from torch._dynamo.variables.base import ValueMutationNew, VariableTracker
from torch._dynamo.variables.builder import VariableBuilder, handle_traced_output, wrap_fx_proxy
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.dicts import ConstDictVariable
from torch._dynamo.variables.lists import ListVariable, TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._guards import Guard, Source
from torch.fx import Node

from torch_piecewise.torch_private.block_fakes import FakeCopies, FakeParameters, can_copy
from torch_piecewise.torch_private.block_modules import check_alike
from torch_piecewise.torch_private.block_recorder import shown_name, twin
from torch_piecewise.torch_private.block_tape import Label, Origin, Step, Surroundings, Tape
from torch_piecewise.torch_private.block_views import (
    Arguments,
    NotAlike,
    Places,
    Values,
    difference,
    is_waiting,
    node_of,
    opened,
    same_value,
    spec,
)


class CopyFailed(Exception):
    """A copy turned out otherwise than what it was copied from, when part of it was made already."""


class Copy:
    """A tape about to be copied for another call.

    Args:
        parameters: gives the trace fakes of parameters like those of the tape.

    Raises:
        NotAlike: a plain trace of this call might differ; nothing was added to the graph but inputs that
            such a trace reads as well.
    """

    def __init__(
        self,
        tape: Tape,
        tx: Any,
        variable: Any,
        view: Arguments,
        around: Surroundings,
        parameters: FakeParameters,
    ) -> None:
        self._parameters = parameters
        self._tape = tape
        self._tx = tx
        self._variable = variable
        self._view = view
        self._around = around
        self.labels: dict[int, Label] = {}
        if view.form != tape.view.form:
            raise NotAlike(f"it is called with {difference(tape.view.form, view.form)}")
        if around.modes != tape.around.modes:
            raise NotAlike("it is called under other modes")
        check_alike(tape.block, variable.value)
        self._moved = tape.places.to(Places([variable.source, *(leaf.source for leaf in view.leaves)]))
        self._traces = self._outer_traces()
        self._values = Values(tx)
        self._ids = {path: str(id(module)) for path, module in variable.value.named_modules()}
        self._check_values()
        self._read_variables: dict[Node, VariableTracker] = {}
        self._nodes = self._inputs()

    def _outer_traces(self) -> Callable[[Origin], str]:
        if self._around.position == self._tape.around.position:
            return lambda origin: origin.trace
        if any(step.origin.own_trace is None for step in self._tape.steps):
            raise NotAlike("it is called from another line")
        return lambda origin: self._around.outer_trace + (origin.own_trace or "")

    def _check_values(self) -> None:
        tape = self._tape
        for source, value in tape.values.items():
            other = self._moved(source)
            if other != source and not same_value(value, self._values.of(other)):
                raise NotAlike(f"{source.name} and {other.name} differ")
        for guard in tape.guards:
            other_place = twin(guard)
            if other_place is None:
                continue
            places = self._moved(guard.originating_source), self._moved(other_place)
            if self._values.of(places[0]) is not self._values.of(places[1]):
                raise NotAlike(f"{places[0].name} is not {places[1].name}")

    # -- inputs

    def _inputs(self) -> dict[Node, Node]:
        """For each node from outside that the tape uses, the one that this call uses."""
        tape = self._tape
        found = {
            old: self._input(old, how)
            for old, how in sorted(tape.inputs.items(), key=lambda item: not isinstance(item[1], int))
        }
        if len(set(found.values())) != len(found):
            raise NotAlike("two of the tensors it uses are one")
        for old, new in found.items():
            if tape.input_specs[old] != spec(new.meta.get("example_value")):
                raise NotAlike(f"{new.name} and {old.name} differ in kind")
        return found

    def _input(self, old: Node, how: int | Source | None) -> Node:
        if how is None:
            return old
        known = self._tx.output.current_tracer.input_name_to_proxy
        before = len(known)
        if isinstance(how, int):
            variable = self._view.leaves[how]
        else:
            source = self._moved(how)
            value = self._values.of(source)
            offered = self._parameters.offer(self._tx.fake_mode, value, old.meta.get("example_value"))
            variable = VariableBuilder(self._tx, source)(value)
            del offered
        variable = variable.realize() if is_waiting(variable) else opened(variable)
        if not isinstance(variable, TensorVariable | SymNodeVariable):
            raise NotAlike(f"a {type(variable).__name__} stands where a tensor was")
        self._read_variables[old] = variable
        node = node_of(variable)
        if len(known) > before and old in self._tape.origins:
            self._place(node, self._tape.origins[old])
        return node

    # -- the copy

    def make(self, *, is_written_down: bool) -> VariableTracker:
        """Add the copied nodes and guards; what the call returns.

        Args:
            is_written_down: whether this happens in a block that is, so that the form of all guards counts.

        Raises:
            CopyFailed: an operation gave another kind of value than in the tape.
        """
        tape, variables = self._tape, dict(self._read_variables)
        self._fakes = self._fake_copies()
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            for step in tape.steps:
                made = self._step(step)
                if made is not None:
                    variables[step.node] = made
        own, calls = shown_name(self._variable), self._tx.num_calls
        for name, count in tape.calls.items():
            calls[own + name] = calls.get(own + name, 0) + count
        for guard in tape.guards if is_written_down else tape.told:
            self._install(guard)
        arguments = dict(zip(tape.view.seen, self._view.seen.values(), strict=True))
        return self._result(tape.result, arguments, variables)

    def _fake_copies(self) -> FakeCopies | None:
        """None where the operations have to be run, because gradients or odd tensors are about."""
        pairs = self._nodes.items()
        values = [(old.meta.get("example_value"), new.meta.get("example_value")) for old, new in pairs]
        if not self._tape.plain_fakes or not can_copy((), (new for _, new in values)):
            return None
        return FakeCopies(self._tx.fake_mode, values)

    def _step(self, step: Step) -> VariableTracker | None:
        node = self._nodes[step.node] = self._node(step)
        if step.function is None:
            # Dynamo's own trace is in that mode from here on, too.
            torch._C._set_grad_enabled(*step.args)
            return None
        return self._valued(step, node)

    def _node(self, step: Step) -> Node:
        args, kwargs = self._mapped(step.args), self._mapped(step.kwargs)
        node: Node = self._tx.output.current_tracer.create_node(step.op, step.target, args, kwargs)
        if step.function is not None:
            node.meta["source_fn_stack"] = [(node.name, step.function)]
            self._place(node, step.origin)
        return node

    def _place(self, node: Node, origin: Origin) -> None:
        """Say of ``node`` in which modules and on which line it was made."""
        stack = dict(self._tx.nn_module_stack)
        own, calls = shown_name(self._variable), self._tx.num_calls
        for one in origin.inside:
            call = calls.get(own + one.name, 0) + one.call
            key = f"{self._ids[one.path]}@{call}" if call > 0 else self._ids[one.path]
            stack[key] = (own + one.name, one.kind)
        if stack:
            node.meta["nn_module_stack"] = stack
        node.meta["stack_trace"] = self._traces(origin)

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Node):
            return self._nodes[value]
        if isinstance(value, tuple | list):
            mapped = [self._mapped(item) for item in value]
            return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
        if isinstance(value, Mapping):
            return {key: self._mapped(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*map(self._mapped, (value.start, value.stop, value.step)))
        label = self._tape.labels.get(id(value))
        return value if label is None or value is not label.text else self._relabelled(label)

    def _relabelled(self, label: Label) -> str:
        source = self._moved(label.source)
        moved = Label(own_object(self._values.of(source)), source)
        self.labels[id(moved.text)] = moved
        return moved.text

    def _valued(self, step: Step, node: Node) -> VariableTracker | None:
        """Give ``node`` its fake value and name as a trace does; its tracker, where one is needed."""
        if self._fakes is not None and step.node not in self._tape.spoken:
            variable = self._copied_value(step, node, self._fakes)
        else:
            variable = self._run(step, node)
        if step.hint is not None:
            node._rename(step.hint)
            if isinstance(variable, TensorVariable):
                variable._is_name_set = True
        return variable

    def _copied_value(self, step: Step, node: Node, fakes: FakeCopies) -> VariableTracker | None:
        if "example_value" not in step.node.meta:
            return None
        old = step.node.meta["example_value"]
        if step.node not in self._tape.escaping:
            node.meta["example_value"] = fakes.of(old)
            return None
        value = fakes.whole(old) if isinstance(old, torch.Tensor) else fakes.of(old)
        proxy = self._tx.output.current_tracer.proxy(node)
        return handle_traced_output(value, self._tx, proxy, {}, None, TensorVariable)

    def _run(self, step: Step, node: Node) -> VariableTracker | None:
        """Run the operation on fake tensors, as Dynamo does."""
        tracer = self._tx.output.current_tracer
        variable: VariableTracker | None = None
        if isinstance(step.node.meta.get("example_value"), torch.Tensor):
            variable = wrap_fx_proxy(self._tx, tracer.proxy(node))
        else:
            value = get_fake_value(node, self._tx, allow_non_graph_fake=True)
            if "example_value" in step.node.meta:
                set_example_value(node, value)
            if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
                variable = SymNodeVariable.create(self._tx, tracer.proxy(node), value)
        result = spec(node.meta["example_value"]) if "example_value" in node.meta else None
        if result != step.result:
            raise CopyFailed(f"{node.name} is {result}, and {step.node.name} was {step.result}")
        return variable

    def _install(self, guard: Guard) -> None:
        source = self._moved(guard.originating_source)
        if source == guard.originating_source:
            return
        create = guard.create_fn
        if isinstance(create, functools.partial):
            details = {k: self._moved(v) if isinstance(v, Source) else v for k, v in create.keywords.items()}
            create = functools.partial(create.func, *create.args, **details)
        moved = dataclasses.replace(guard, originating_source=source, create_fn=create, _hash=None)
        self._tx.output.guards.add(moved, collect_debug_stack=False)

    def _result(
        self,
        old: VariableTracker,
        arguments: Mapping[int, VariableTracker],
        made: Mapping[Node, VariableTracker],
    ) -> VariableTracker:
        old = opened(old)
        if id(old) in arguments:
            return arguments[id(old)]
        if isinstance(old, TensorVariable | SymNodeVariable):
            return made[node_of(old)]
        if type(old) is ConstantVariable:
            return old
        again = functools.partial(self._result, arguments=arguments, made=made)
        fresh = ValueMutationNew() if old.mutation_type is not None else None
        if isinstance(old, TupleVariable | ListVariable):
            return type(old)([again(item) for item in old.items], mutation_type=fresh)
        assert type(old) is ConstDictVariable
        items = {again(key.vt): again(item) for key, item in old.items.items()}
        return ConstDictVariable(items, mutation_type=fresh)


def own_object(text: str) -> str:
    """``text`` as an object of its own, by which it can be told where it came from."""
    return "".join(list(text))


__all__ = ["Copy", "CopyFailed", "own_object"]
