"""Compiled functions; in a class body, methods that are compiled for each object."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.compiler import is_dynamo_compiling

from torch_piecewise.compiled import CompiledCall
from torch_piecewise.config import Config
from torch_piecewise.tags import tag_in_force
from torch_piecewise.whole_model import dims_of_mode

_HANDLES = "__torch_piecewise_handles__"


@dataclass(frozen=True)
class Request:
    """What ``tp.compile`` was asked for.

    Attributes:
        settings: complete.
        tag: names the part of a model; None for the tag in force.
        enable_if: asked about the module, the object or the function; None for always.
    """

    settings: Config
    tag: str | None = None
    enable_if: Callable[[Any], Any] | None = None

    def wants(self, target: Any) -> bool:
        """Whether ``target`` is to be compiled."""
        return self.enable_if is None or bool(self.enable_if(target))


class Handles:
    """The handles of one compiled function: its own, and one for each object that it is a method of.

    Args:
        function: as it was decorated.
        request: how it is compiled.
    """

    def __init__(self, function: Callable[..., Any], request: Request) -> None:
        self._function = function
        in_force = tag_in_force()
        tag = request.tag or (in_force.name if in_force is not None else None)
        self._request = Request(request.settings, tag, request.enable_if)
        self._published: Callable[..., Any] | None = None
        self._own: CompiledCall | Callable[..., Any] | None = None
        self._of: dict[int, tuple[Any, Any]] = {}
        self._method_of: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def publish(self) -> Callable[..., Any]:
        """The function that people call; a plain one, so that it binds, traces and inherits as any."""
        function = self._function

        @functools.wraps(function)
        def compiled(*args: Any, **kwargs: Any) -> Any:
            if is_dynamo_compiling():  # a part of something that is compiled as a whole
                return function(*args, **kwargs)
            return self.serve(args, kwargs)

        self._published = compiled
        setattr(compiled, _HANDLES, self)
        return compiled

    def serve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call."""
        if args and self._is_method_of(type(args[0])):
            return self.of(args[0])(*args[1:], **kwargs)
        return self.own()(*args, **kwargs)

    def own(self) -> Any:
        """What serves calls of the function itself."""
        if self._own is None:
            with self._lock:
                if self._own is None:
                    self._own = self._made(self._function, None, self._function)
        return self._own

    def of(self, instance: Any) -> Any:
        """What serves calls of the method of ``instance``."""
        known = self._of.get(id(instance))
        if known is None:
            with self._lock:
                known = self._of.get(id(instance))
                if known is None:
                    bound = self._function.__get__(instance)
                    known = self._of[id(instance)] = (instance, self._made(bound, instance, instance))
        return known[1]

    def _is_method_of(self, cls: type) -> bool:
        found = self._method_of.get(cls)
        if found is None:
            found = any(value is self._published for one in cls.__mro__ for value in vars(one).values())
            self._method_of[cls] = found
        return found

    def _made(self, function: Callable[..., Any], owner: Any, asked: Any) -> Any:
        if not self._request.wants(asked):
            return function
        return CompiledCall(function, owner, self._request.settings, function, tag=self._request.tag)


def compiled_function(function: Callable[..., Any], request: Request) -> Callable[..., Any]:
    """``function``, compiled where it is called; see :class:`Handles`.

    Raises:
        ConfigError: the settings name an argument that it lacks, or no dim is known to change.
    """
    handles = Handles(function, request)
    if "self" not in inspect.signature(function).parameters:
        dims_of_mode(function, request.settings)  # a mistake in the settings is told here, not at a call
    return handles.publish()


def handle_of(function: Any) -> Any:
    """What serves ``function``, a compiled function or method; None where it is neither."""
    handles = getattr(function, _HANDLES, None)
    if not isinstance(handles, Handles):
        return None
    return handles.of(function.__self__) if inspect.ismethod(function) else handles.own()
