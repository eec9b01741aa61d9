"""A Python function that is a torch op and a place to cut.

``torch.library.custom_op`` would do the same for the graph, but its wrappers cost several times what the
dispatcher does, and calling it imports Dynamo; here the op is made with ``torch.library.define`` and
``impl``, and the plain body stays reachable, so that a runner can call it without the dispatcher.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch

from torch_piecewise.errors import SplitError
from torch_piecewise.splitting_ops_definition import (
    Definition,
    checked_definition,
    checked_name,
    first_line,
    quoted,
    with_fake,
)
from torch_piecewise.torch_private.splitting_ops import OpOverload, OpOverloadPacket

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class _Formula:
    """How gradients go back through an op that returns its results."""

    backward: Callable[..., Any]
    setup_context: Callable[..., Any] | None


class SplittingOp(Generic[P, R]):
    """An op at which traced graphs are cut. Made by :func:`splitting_op`.

    Calling it goes through torch's dispatcher, as calling any op does, so Dynamo, fake tensors, dispatch
    modes and autograd see one node.

    Attributes:
        name: ``"namespace::name"``.
        op: the op as it stands in graphs (an ``OpOverload``).
    """

    __name__: str

    def __init__(self, definition: Definition, op: OpOverload) -> None:
        self.name = definition.name
        self.op = op
        self._definition = definition
        self._formula: _Formula | None = None
        functools.update_wrapper(self, definition.body)

    @property
    def body(self) -> Callable[P, R]:
        """The plain function, for callers that need no dispatcher.

        It gives what the op gives where gradients are off (or no input needs one), no dispatch mode is
        active and no input is a tensor subclass; elsewhere call :attr:`op`.
        """
        return self._definition.body

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.op(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        return f"<splitting op {self.name}>"

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Say what the op returns for tensors without data, as ``splitting_op(fake=...)`` does.

        Also a decorator. Programs compiled before keep what they were told.

        Args:
            fake: same parameters as the function; makes empty outputs of the right sizes.

        Raises:
            SplitError: it does not take the op's arguments.
        """
        self._definition = with_fake(self._definition, fake)
        return fake

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., Any] | None = None
    ) -> None:
        """Give the op a backward formula, as ``torch.library.register_autograd`` does.

        Args:
            backward: ``(ctx, *grads)`` -> one gradient or None for each input.
            setup_context: ``(ctx, inputs, output)`` -> None, called after the forward to save what
                ``backward`` needs (ops with keyword-only arguments get ``keyword_only_inputs`` too); None
                saves nothing.

        Raises:
            SplitError: the op writes to its arguments; torch knows formulas for returned results only.
        """
        if written := self._definition.schema.written:
            raise SplitError(
                f"{self.name} writes to its arguments {quoted(written)} and cannot have a backward formula",
                expected="an op that returns new tensors and writes to nothing",
                hint="return the result instead of writing it, and leave mutates_args empty",
            )
        self._formula = _Formula(backward, setup_context)

    def _run(self, *args: object, **kwargs: object) -> object:
        return self._definition.body(*args, **kwargs)

    def _run_fake(self, *args: object, **kwargs: object) -> object:
        return self._definition.fake(*args, **kwargs)

    def _backward(self, ctx: object, *grads: object) -> object:
        if self._formula is None:
            raise SplitError(
                f"{self.name} has no backward formula",
                got="a backward pass through its result",
                hint=f"give it one with {self.__name__}.register_autograd(backward, setup_context=...)",
            )
        return self._formula.backward(ctx, *grads)

    def _setup_context(self, ctx: object, **values: object) -> None:
        if self._formula is not None and self._formula.setup_context is not None:
            self._formula.setup_context(ctx, **values)


class _Registry:
    """Every splitting op of the process, by name; names are added and never removed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, SplittingOp[..., Any]] = {}
        self._by_op: dict[OpOverload, SplittingOp[..., Any]] = {}

    def named(self, name: str) -> SplittingOp[..., Any] | None:
        return self._by_name.get(name)

    def find(self, op: OpOverload) -> SplittingOp[..., Any] | None:
        return self._by_op.get(op)

    def define(self, definition: Definition) -> SplittingOp[..., Any]:
        with self._lock:
            known = self._by_name.get(definition.name)
            if known is not None:
                _redefine(known, definition)
                return known
            made = _define(definition)
            self._by_name[made.name] = made
            self._by_op[made.op] = made
            return made


# The one process-wide value of the library, as torch's own registry of ops is: docs/decisions/0002.
_REGISTRY = _Registry()


def splitting_op(
    name: str,
    *,
    mutates_args: Iterable[str] = (),
    fake: Callable[..., Any] | None = None,
    device_types: str | Sequence[str] | None = None,
    schema: str | None = None,
) -> Callable[[Callable[P, R]], SplittingOp[P, R]]:
    """Decorator: register a function as a torch op and mark it as a place to cut.

    ::

        @splitting_op("myns::attention", mutates_args=("out",))
        def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, layer: str) -> None: ...

    Defining the same function again (a reloaded module, a notebook cell) replaces its body in place.
    Without a backward formula, an op that writes refuses inputs that need a gradient, and an op that
    returns raises when a backward pass reaches it.

    Args:
        name: ``"namespace::name"``, unique in the process.
        mutates_args: names of the tensor arguments that the function writes to.
        fake: same parameters as the function; makes empty outputs of the right sizes. None is right for
            an op that returns nothing; for another the function itself then runs on tensors without data
            while a model is traced, so it may do nothing but torch operations on its arguments.
        device_types: the devices the body serves (``"cpu"``, ``("cpu", "cuda")``); None for all.
        schema: the op's schema, ``"(Tensor x, Tensor(a!) out) -> ()"``; None takes it from the
            annotations and ``mutates_args``.

    Raises:
        SplitError: the name, the signature, the fake or the schema is wrong, or the name is taken.
    """
    checked_name(name)

    def decorate(body: Callable[P, R]) -> SplittingOp[P, R]:
        definition = checked_definition(
            name, body, mutates_args=mutates_args, fake=fake, device_types=device_types, schema=schema
        )
        return cast("SplittingOp[P, R]", _REGISTRY.define(definition))

    return decorate


def splitting_op_for(target: object) -> SplittingOp[..., Any] | None:
    """The splitting op behind the target of a graph node, or None.

    Args:
        target: an ``OpOverload``, an ``OpOverloadPacket``, or a :class:`SplittingOp` itself; anything
            else gives None.
    """
    if isinstance(target, SplittingOp):
        return target
    if isinstance(target, OpOverloadPacket):
        target = getattr(target, "default", None)
    return _REGISTRY.find(target) if isinstance(target, OpOverload) else None


def _define(definition: Definition) -> SplittingOp[..., Any]:
    namespace, _, short = definition.name.partition("::")
    try:
        torch.library.define(definition.name, definition.schema.text, tags=(torch.Tag.pt2_compliant_tag,))
    except RuntimeError as error:
        raise SplitError(
            f"torch does not take an op {definition.name}",
            got=first_line(error),
            hint="choose a name that no library has",
        ) from error
    op: SplittingOp[..., Any] = SplittingOp(definition, getattr(getattr(torch.ops, namespace), short).default)
    run, run_fake = op._run, op._run_fake
    if definition.schema.written:
        run, run_fake = _refusing_gradients(run, definition), _refusing_gradients(run_fake, definition)
    else:
        torch.library.register_autograd(op.name, op._backward, setup_context=op._setup_context)
    torch.library.impl(op.name, definition.devices or "default", run)
    torch.library.register_fake(op.name, run_fake)
    return op


def _redefine(op: SplittingOp[..., Any], new: Definition) -> None:
    old = op._definition
    for what, before, after, hint in (
        ("by another function", old.origin, new.origin, "choose another name"),
        ("with another schema", old.schema.text, new.schema.text, "restart the process: ops cannot change"),
        ("for other devices", old.devices, new.devices, "restart the process: ops cannot change"),
    ):
        if before != after:
            raise SplitError(
                f"{new.name} is already defined {what}", expected=f"{before}", got=f"{after}", hint=hint
            )
    # Programs may be running: one assignment, so that each call sees either the old code or the new.
    op._definition = new
    functools.update_wrapper(op, new.body)


def _refusing_gradients(run: Callable[..., object], definition: Definition) -> Callable[..., object]:
    """``run`` behind a check that nobody waits for a gradient, which a written result cannot carry."""
    names = definition.schema.arguments

    def checked(*args: object, **kwargs: object) -> object:
        if torch.is_grad_enabled():
            given = dict(zip(names, args, strict=False)) | kwargs
            wanting = [name for name, value in given.items() if _wants_gradient(value)]
            if wanting:
                raise SplitError(
                    f"{definition.name} writes its result and passes no gradient on, but "
                    f"{quoted(wanting)} needs one",
                    expected="inputs that need no gradient",
                    hint="for inference call the model under torch.no_grad() or torch.inference_mode(); for "
                    "training let the op return its result and give it a formula with register_autograd",
                )
        return run(*args, **kwargs)

    return checked


def _wants_gradient(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    return isinstance(value, list | tuple) and any(_wants_gradient(item) for item in value)


def splitting_op_named(name: str) -> SplittingOp[..., Any] | None:
    """The splitting op ``ns::name`` (or ``ns::name.overload``), or None."""
    return _REGISTRY.named(name.partition(".")[0])


def body_lookup(*, grad_enabled: bool) -> Callable[[object], Callable[..., Any] | None]:
    """What finds the plain body of an op, for a runner that calls bodies directly.

    With gradients on it finds none: then the op itself has to see the call.
    """
    if grad_enabled:
        return lambda _target: None

    def body_of(target: object) -> Callable[..., Any] | None:
        found = splitting_op_for(target)
        return found.body if found is not None else None

    return body_of
