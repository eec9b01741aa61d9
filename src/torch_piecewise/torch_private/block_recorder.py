"""What Dynamo did while it traced one call of a block: the nodes, what was read, what came out.

Dynamo's translators, guards and the node metadata it writes are private in all versions (2.11, 2.13).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.dicts import ConstDictVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._guards import Guard, Source
from torch.fx import Node
from torch.nn import Module

from torch_piecewise.torch_private.block_fakes import can_copy
from torch_piecewise.torch_private.block_modules import ids_compared
from torch_piecewise.torch_private.block_tape import Inner, Label, Origin, Step, Surroundings, Tape
from torch_piecewise.torch_private.block_views import (
    PLAIN,
    Arguments,
    NotAlike,
    Places,
    Values,
    is_sequence,
    is_waiting,
    node_of,
    opened,
    spec,
)

_KNOWN_META = frozenset(
    {"nn_module_stack", "source_fn_stack", "stack_trace", "example_value", "creation_timestamp"}
)


class Recorder:
    """Watches Dynamo trace one call of a block; :meth:`tape` says what it saw.

    Args:
        unread: see :class:`~torch_piecewise.torch_private.blocks.Blocks`.

    Raises:
        NotAlike: the call is of a kind that cannot be copied.
    """

    def __init__(
        self,
        tx: Any,
        variable: Any,
        view: Arguments,
        around: Surroundings,
        epoch: int,
        unread: str | None = None,
    ) -> None:
        output = tx.output
        self._unread = unread
        self.variable = variable
        self.view = view
        self.around = around
        self.epoch = epoch
        self.places = Places([variable.source, *(leaf.source for leaf in view.leaves)])
        self.effects: list[str] = []
        self.labels: dict[int, Label] = {}
        self.spoiled: set[str] = set()
        self._tx = tx
        self._last = output.graph._root.prev
        known = output.current_tracer.input_name_to_proxy.values()
        self._known_inputs = frozenset(proxy.node for proxy in known)
        self._counts = _counts(output)
        self._guards = set(output.guards)
        self._leaf_specs = [None if is_waiting(one) else _leaf_spec(one) for one in view.leaves]
        self._outer_stack = dict(tx.nn_module_stack)
        self._calls = dict(tx.num_calls)

    def tape(self, result: VariableTracker) -> Tape:
        """What happened, once the call has returned ``result``.

        Raises:
            NotAlike: it did something that a copy could not repeat.
        """
        self._check_effects()
        nodes = self._new_nodes()
        steps = tuple(self._step(node) for node in nodes)
        self._inputs = self._outside(steps)
        guards = self._read()
        result = opened(result)
        names = {step.node: f"n{index}" for index, step in enumerate(steps)}
        names |= {node: self._input_text(node, how) for node, how in self._inputs.items()}
        form = (
            self.view.form,
            self.around.modes,
            *(self._line(step, names) for step in steps),
            *sorted({self._guard_text(guard) for guard in guards}),
            self._result_text(result, names),
            *sorted(f"{name} {count}" for name, count in self._new_calls().items()),
            *sorted(map(self.places.relative, self.spoiled)),
        )
        return Tape(
            block=self.variable.value,
            places=self.places,
            view=self.view,
            around=self.around,
            form=form,
            steps=steps,
            inputs=self._inputs,
            input_specs={node: spec(node.meta.get("example_value")) for node in self._inputs},
            origins={node: self._origin(node) for node in self._inputs if self._is_new(node)},
            guards=guards,
            told=tuple(guard for guard in guards if self._is_told(guard)),
            values=self._plain_values(guards),
            labels=self.labels,
            spoiled=frozenset(self.spoiled),
            spoken=frozenset(step.node for step in steps if self._holds_label((step.args, step.kwargs))),
            escaping=frozenset(_nodes_in(result)),
            plain_fakes=can_copy(_values(nodes), _values(self._inputs)),
            calls=self._new_calls(),
            result=result,
            epoch=self.epoch,
        )

    # -- what a copy could not repeat

    def _check_effects(self) -> None:
        if self.effects:
            raise NotAlike(f"it changes {self.effects[0]}")
        if _counts(self._tx.output) != self._counts:
            raise NotAlike("it holds nested graphs, hooks, random numbers, or sizes that depend on data")
        if Surroundings.of(self._tx).modes != self.around.modes:
            raise NotAlike("it leaves a mode changed")
        for leaf, before in zip(self.view.leaves, self._leaf_specs, strict=True):
            if before is not None and _leaf_spec(leaf) != before:
                raise NotAlike("it changes an argument's size, strides or gradient flag")

    # -- nodes

    def _new_nodes(self) -> list[Node]:
        found = []
        node = self._tx.output.graph._root.prev
        while node is not self._last and node.op != "root":
            found.append(node)
            node = node._prev
        return [node for node in reversed(found) if node.op != "placeholder"]

    def _step(self, node: Node) -> Step:
        if node.op not in ("call_function", "call_method"):
            raise NotAlike(f"it holds a {node.op}")
        unknown = set(node.meta) - _KNOWN_META
        if unknown:
            raise NotAlike(f"a node carries {', '.join(sorted(unknown))}")
        if "source_fn_stack" not in node.meta:
            return self._switch(node)
        made_as, function = node.meta["source_fn_stack"][-1]
        if len(node.meta["source_fn_stack"]) != 1:
            raise NotAlike("it holds nested graphs")
        return Step(
            node=node,
            op=node.op,
            target=node.target,
            args=node.args,
            kwargs=dict(node.kwargs),
            hint=None if node.name == made_as else re.sub(r"_\d+$", "", node.name),
            origin=self._origin(node),
            function=function,
            result=spec(node.meta["example_value"]) if "example_value" in node.meta else None,
        )

    def _switch(self, node: Node) -> Step:
        """A node that Dynamo writes where it changes a mode; it carries nothing."""
        if node.target is not torch._C._set_grad_enabled:
            raise NotAlike(f"it enters a mode by {node.target}")
        return Step(node, node.op, node.target, node.args, {}, None, Origin((), "", ""), None, None)

    def _is_new(self, node: Node) -> bool:
        return node.op == "placeholder" and node not in self._known_inputs

    def _origin(self, node: Node) -> Origin:
        trace, outer = node.meta.get("stack_trace", ""), self.around.outer_trace
        own_trace = trace[len(outer) :] if trace.startswith(outer) else None
        return Origin(self._inside(node), trace, own_trace)

    def _inside(self, node: Node) -> tuple[Inner, ...]:
        block: Module = self.variable.value
        paths = {str(id(module)): path for path, module in block.named_modules()}
        stack = node.meta.get("nn_module_stack", {})
        found = []
        for key, (name, kind) in stack.items():
            if key in self._outer_stack:
                continue
            number, _, call = key.partition("@")
            if number not in paths or not name.startswith(self._own_name()):
                raise NotAlike("it calls a module that is no part of it")
            before = self._calls.get(name, 0)
            relative = name[len(self._own_name()) :]
            found.append(Inner(paths[number], relative, kind, int(call or 0) - before))
        return tuple(found)

    def _own_name(self) -> str:
        return shown_name(self.variable)

    def _new_calls(self) -> dict[str, int]:
        own, now = self._own_name(), self._tx.num_calls
        changed = {name: count - self._calls.get(name, 0) for name, count in now.items()}
        return {name[len(own) :]: count for name, count in changed.items() if count and name.startswith(own)}

    # -- where things come from

    def _outside(self, steps: tuple[Step, ...]) -> dict[Node, int | Source | None]:
        """None for what is the same for every block."""
        made = {step.node for step in steps}
        arguments = {}
        for index, leaf in enumerate(self.view.leaves):
            if not is_waiting(leaf):
                arguments[node_of(opened(leaf))] = index
        held = _held_tensors(self.variable.value)
        found: dict[Node, int | Source | None] = {}
        for step in steps:
            for node in step.node.all_input_nodes:
                if node in made or node in found:
                    continue
                if node in arguments:
                    found[node] = arguments[node]
                    continue
                found[node] = self._source(node, held)
        return found

    def _source(self, node: Node, held: frozenset[int]) -> Source | None:
        if node.op != "placeholder":
            raise NotAlike("it uses a value that came to it neither as an argument nor by an attribute")
        grapharg = node.meta.get("grapharg")
        source = getattr(node, "_dynamo_source", None) or getattr(grapharg, "source", None)
        if source is None:
            raise NotAlike("it uses a graph input of unknown origin")
        if self.places.mention(source.name):
            return source  # type: ignore[no-any-return]
        if id(Values(self._tx).of(source)) in held:
            raise NotAlike("it shares a tensor with what was traced before it")
        return None

    def _read(self) -> tuple[Guard, ...]:
        block = self.variable.value
        about = [
            guard
            for guard in self._tx.output.guards
            if self.places.mention(guard.name)
            or ((other := twin(guard)) is not None and self.places.mention(other.name))
        ]
        values = Values(self._tx)
        for guard in [*about, *(g for g in self._tx.output.guards if g not in self._guards)]:
            kind = guard.inner_create_fn().__name__
            if kind in ("GRAD_MODE", "SHAPE_ENV") or not guard.name:
                continue
            try:
                value = values.of(guard.originating_source)
            except NotAlike:
                if self.places.mention(guard.name):
                    raise
                continue
            if isinstance(value, Module) and value is not block and block in set(value.modules()):
                raise NotAlike("it reads a module that it is part of")
        return tuple(about)

    def _is_told(self, guard: Guard) -> bool:
        if self._unread is None or not guard.name.startswith(self._unread) or twin(guard) is not None:
            return True
        return isinstance(Values(self._tx).of(guard.originating_source), PLAIN)

    def _plain_values(self, guards: tuple[Guard, ...]) -> dict[Source, Any]:
        compared = ids_compared(self.variable.value)
        values, found = Values(self._tx), {}
        labels = {label.source.name for label in self.labels.values()} - self.spoiled
        for source in {guard.originating_source for guard in guards}:
            value = values.of(source)
            if id(value) not in compared and source.name not in labels:
                found[source] = value
        return found

    # -- the form

    def _input_text(self, node: Node, how: int | Source | None) -> str:
        if isinstance(how, int):
            return f"a{how}"
        return f"c {self.places.relative(how.name)}" if how is not None else f"f {node.name}"

    def _line(self, step: Step, names: Mapping[Node, str]) -> str:
        target = step.target if isinstance(step.target, str) else f"{step.target!r} {id(step.target)}"
        args = f"{self._argument(step.args, names)} {self._argument(step.kwargs, names)}"
        origin = step.origin
        inside = [(one.path, one.name, one.kind, one.call) for one in origin.inside]
        trace = origin.trace if origin.own_trace is None else origin.own_trace
        return f"{step.op} {target} {args} {step.hint} {inside} {step.result} {trace}"

    def _argument(self, value: Any, names: Mapping[Node, str]) -> str:
        if isinstance(value, Node):
            return names[value]
        if isinstance(value, tuple | list):
            return f"[{', '.join(self._argument(item, names) for item in value)}]"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{k!r}: {self._argument(v, names)}' for k, v in value.items())}}}"
        if isinstance(value, slice):
            return f"slice{self._argument((value.start, value.stop, value.step), names)}"
        label = self.labels.get(id(value))
        if label is not None:
            return f"label {self.places.relative(label.source.name)}"
        return f"{type(value).__name__} {value!r}"

    def _holds_label(self, value: Any) -> bool:
        if isinstance(value, tuple | list):
            return any(map(self._holds_label, value))
        if isinstance(value, Mapping):
            return any(map(self._holds_label, value.values()))
        return id(value) in self.labels

    def _guard_text(self, guard: Guard) -> str:
        details = getattr(guard.create_fn, "keywords", None) or {}
        plain = {name: value for name, value in details.items() if isinstance(value, PLAIN)}
        other = twin(guard)
        if other is not None:
            plain["is"] = self.places.relative(other.name)
        kind = guard.inner_create_fn().__name__
        return f"{kind} {self.places.relative(guard.name)} {sorted(plain.items())}"

    def _result_text(self, variable: VariableTracker, names: Mapping[Node, str]) -> str:
        variable = opened(variable)
        if id(variable) in self.view.seen:
            return f"argument {list(self.view.seen).index(id(variable))}"
        if is_waiting(variable):
            raise NotAlike("it returns something it never looked at")
        if isinstance(variable, TensorVariable | SymNodeVariable):
            node = node_of(variable)
            if node not in names:
                raise NotAlike("it returns a tensor that it does not compute")
            return f"{type(variable).__name__} {names[node]}"
        if variable.source is None and type(variable) is ConstantVariable:
            return f"constant {type(variable.value).__name__} {variable.value!r}"
        if variable.source is None and is_sequence(variable):
            items = [self._result_text(item, names) for item in variable.items]
            return f"{type(variable).__name__}[{', '.join(items)}]"
        if variable.source is None and type(variable) is ConstDictVariable and variable.user_cls is dict:
            pairs = [(self._result_text(k.vt, names), v) for k, v in variable.items.items()]
            return f"dict{{{', '.join(f'{k}: {self._result_text(v, names)}' for k, v in pairs)}}}"
        raise NotAlike(f"it returns a {type(variable).__name__}")


def twin(guard: Guard) -> Source | None:
    """The other place at which the trace met the object that this guard is about; None for other guards."""
    found = (getattr(guard.create_fn, "keywords", None) or {}).get("source_b")
    return found if isinstance(found, Source) else None


def shown_name(variable: Any) -> str:
    """A module's name as it stands in ``nn_module_stack``: ``L['self'].layers.0``."""
    name = variable.get_nn_module_stack_source().name
    return re.sub(r"\._(?:modules|parameters|buffers)\[(['\"])([^'\"\]]+)\1\]", r".\2", name)


def _nodes_in(variable: VariableTracker) -> Iterable[Node]:
    variable = opened(variable)
    if isinstance(variable, TensorVariable | SymNodeVariable):
        yield node_of(variable)
    elif is_sequence(variable):
        for item in variable.items:
            yield from _nodes_in(item)
    elif type(variable) is ConstDictVariable:
        for item in variable.items.values():
            yield from _nodes_in(item)


def _values(nodes: Iterable[Node]) -> list[Any]:
    return [node.meta.get("example_value") for node in nodes]


def _leaf_spec(variable: VariableTracker) -> str:
    return spec(node_of(opened(variable)).meta.get("example_value"))


def _counts(output: Any) -> tuple[int, ...]:
    """What grows when a trace does something that copying its nodes would not repeat."""
    effects = output.side_effects
    return (
        len(output.nn_modules),
        len(output.random_calls),
        len(effects.tensor_hooks),
        len(effects.save_for_backward),
        sum(not _is_from_input(symbol, output.shape_env) for symbol in output.shape_env.var_to_range),
        len(output.tracers),
    )


def _is_from_input(symbol: Any, shape_env: Any) -> bool:
    return bool(shape_env.var_to_sources.get(symbol))


def held_outside(effects: Any) -> dict[int, VariableTracker]:
    """By ``id``, what hangs on objects and containers that the trace changed, directly or not.

    A block can reach it without an argument; so changing it counts like changing what it hangs on.
    """
    found: dict[int, VariableTracker] = {}

    def keep(variable: VariableTracker) -> None:
        found[id(variable)] = variable

    for item, attributes in effects.store_attr_mutations.items():
        VariableTracker.visit(keep, (item, dict(attributes)))
    for variable in effects.id_to_variable.values():
        if variable.source is not None and getattr(variable.mutation_type, "is_modified", False):
            VariableTracker.visit(keep, variable)
    return found


def _held_tensors(block: Module) -> frozenset[int]:
    """Ids of the tensors that hang on a block's modules, as parameters, buffers or plain attributes."""
    found: set[int] = set()
    for module in block.modules():
        own = vars(module)
        for table in (own, own.get("_parameters", {}), own.get("_buffers", {})):
            found.update(id(value) for value in table.values() if isinstance(value, torch.Tensor))
    return frozenset(found)
