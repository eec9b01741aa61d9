"""What ``splitting_op`` reads off a function: which parameters, which of them it writes, what it returns."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch_piecewise.errors import SplitError

_TAKEN = "Tensor, int, float, bool, str, torch.dtype, torch.device, lists and optionals of them"


def checked_body(name: str, body: object) -> FunctionType:
    """``body``, if it is a function that an op can be made of.

    Raises:
        SplitError: it is something else; says what to give instead.
    """
    if not isinstance(body, FunctionType):
        raise SplitError(
            f"{name} was given something that is not a Python function",
            expected="a function made with def",
            got=f"{body!r}",
            hint=_instead_of(body),
        )
    if inspect.iscoroutinefunction(body) or inspect.isgeneratorfunction(body):
        raise SplitError(
            f"{name}: {body.__qualname__} does not run when it is called",
            expected="a plain function, which returns when its work is done",
            got="an async function" if inspect.iscoroutinefunction(body) else "a generator",
        )
    return body


def _instead_of(body: object) -> str:
    if callable(getattr(body, "register_autograd", None)):  # one made here, or by torch.library.custom_op
        return "it is an op already: use one decorator, on the function itself"
    if isinstance(body, MethodType):
        return "an op has no self: write a function, and pass what it needs of the object"
    if isinstance(body, type) or callable(body):
        return "wrap the call in a function with annotated parameters"
    return "put the decorator above a def"


def checked_written(name: str, mutates_args: object) -> tuple[str, ...]:
    """Names of the arguments that are written to, as they were given.

    Raises:
        SplitError: this is no list of names.
    """
    if isinstance(mutates_args, str):
        raise SplitError(
            f"{name}: mutates_args is one string",
            expected="a tuple or list of argument names",
            got=repr(mutates_args),
            hint=f"write mutates_args=({mutates_args!r},)",
        )
    given = tuple(mutates_args) if isinstance(mutates_args, Iterable) else None
    if given is None or not all(isinstance(one, str) for one in given):
        raise SplitError(
            f"{name}: mutates_args is no list of argument names",
            expected="a tuple or list of argument names",
            got=repr(mutates_args),
            hint='write mutates_args=("out",), or leave it out where nothing is written to',
        )
    return tuple(dict.fromkeys(given))


def check_signature(name: str, body: FunctionType, written: tuple[str, ...]) -> None:
    """Find what keeps a schema from being made of ``body``, in words about the function.

    Raises:
        SplitError: a parameter or the result is not annotated, or ``written`` names no tensor of it.
    """
    parameters = inspect.signature(body).parameters
    _check_kinds(name, body, parameters)
    _check_annotated(name, body, parameters)
    for one in written:
        if one not in parameters:
            near = difflib.get_close_matches(one, parameters, n=1)
            raise SplitError(
                f"{name}: mutates_args names {one!r}, which {body.__qualname__} does not have",
                expected=f"names out of ({', '.join(parameters)})",
                got=repr(one),
                hint=f"did you mean {near[0]!r}?" if near else "name the parameters that it writes to",
            )
        annotation = _annotation(body, one)
        if "Tensor" not in str(annotation):
            raise SplitError(
                f"{name}: mutates_args names {one!r}, which is no tensor",
                expected="a parameter that is a Tensor or a list of them",
                got=f"{one}: {_text(annotation)}",
                hint=f"leave {one!r} out of mutates_args: only tensors are written to",
            )


def unsupported_type(name: str, body: FunctionType, error: Exception) -> SplitError:
    """The error for a signature that torch makes no schema of for another reason."""
    reason = str(error).removeprefix("infer_schema(func): ").partition(" Got func with signature ")[0]
    return SplitError(
        f"{name}: no schema can be made from the signature of {body.__qualname__}",
        expected=f"annotations that torch knows ({_TAKEN})",
        got=reason.partition(" The valid types are")[0],
        hint="mend the annotations, or give schema='(Tensor x, ...) -> ...'",
    )


def _check_kinds(name: str, body: FunctionType, parameters: Mapping[str, inspect.Parameter]) -> None:
    refused = (
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
        inspect.Parameter.POSITIONAL_ONLY,
    )
    wrong = [str(one) for one in parameters.values() if one.kind in refused]
    if wrong:
        raise SplitError(
            f"{name}: {body.__qualname__} has parameters that an op cannot have",
            expected="parameters that can be given by position and by name",
            got=", ".join(wrong),
            hint="name each argument; several tensors can come as one list[Tensor]",
        )


def _check_annotated(name: str, body: FunctionType, parameters: Mapping[str, inspect.Parameter]) -> None:
    bare = [one.name for one in parameters.values() if one.annotation is one.empty]
    if bare:
        called = "a lambda" if body.__name__ == "<lambda>" else body.__qualname__
        raise SplitError(
            f"{name}: {called} has parameters without annotations",
            expected=f"each one annotated: {_TAKEN}",
            got=", ".join(bare),
            hint=f"{_how_to_annotate(body, bare[0])}, or give schema='(Tensor x, ...) -> ...'",
        )
    if inspect.signature(body).return_annotation is inspect.Signature.empty:
        raise SplitError(
            f"{name}: {body.__qualname__} does not say what it returns",
            expected="-> None where it writes its result, else -> torch.Tensor or a tuple or list of them",
            got=f"def {body.__name__}{inspect.signature(body)}",
            hint="annotate the result, or give schema='(Tensor x, ...) -> ...'",
        )


def _how_to_annotate(body: FunctionType, parameter: str) -> str:
    if body.__name__ == "<lambda>":
        return "write a def, for a lambda cannot have annotations"
    if parameter == "self":
        return "write a function, for an op has no self"
    return f"write {parameter}: torch.Tensor"


def _annotation(body: Callable[..., Any], parameter: str) -> Any:
    try:
        return typing.get_type_hints(body)[parameter]
    except Exception:  # noqa: BLE001 - a name that exists for type checkers only: judge by the text
        return body.__annotations__.get(parameter)


def _text(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
