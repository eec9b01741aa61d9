"""Capture that can be interrupted: functions marked here run eagerly between static graphs.

``capture_plan(fn, backend)`` calls ``fn`` once. Whenever ``fn`` comes to a marked function, the graph being
recorded is closed and replayed, the marked function runs on real values, and the next graph is begun. So a
captured call computes the right results and does each of its side effects once, like any other call, and
what it went through is the plan for the calls to come.

Four marks; each one costs a look-up of a context variable outside of a capture:

* :func:`runs_eagerly`: always eager, during capture and replay. For users.
* :func:`cut_step`: eager when pieces are captured, part of the graph when the whole call is. For cuts.
* :func:`opaque_call`: compiled code; the same to a GPU, but one operation to a recorder of operations.
* :func:`partitioned_call`: compiled code that holds the cuts, and calls what is to be captured itself.

In a replay a marked function gets the arguments it got at capture: the same memory, and the same numbers.
Tensors it returns are copied to where the next graph looks for them; one that it returns as it was given
stays where it is, so memory that captured code is to write into (a cache) goes in as an argument, not out
as a result. It may read anything else it likes, but what it keeps of its arguments for later it has to copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch

from torch_piecewise.cudagraphs.base import StaticGraphBackend
from torch_piecewise.cudagraphs.capture_session import SESSION, Session, map_tensors
from torch_piecewise.cudagraphs.plan import ReplayPlan
from torch_piecewise.errors import StaticGraphError
from torch_piecewise.torch_private.cudagraphs import flatten
from torch_piecewise.torch_private.partitions import Partitioned

P = ParamSpec("P")
R = TypeVar("R")


def runs_eagerly(fn: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that runs eagerly during capture and replay, whatever the mode."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        session = SESSION.get()
        return fn(*args, **kwargs) if session is None else session.run_eagerly(fn, args, kwargs)

    return call


def cut_step(fn: Callable[P, R]) -> Callable[P, R]:
    """Mark a cut: eager between captured pieces, captured itself when the whole call is."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        session = SESSION.get()
        if session is None or session.captures_cuts:
            return fn(*args, **kwargs)
        return session.run_eagerly(fn, args, kwargs)

    return call


def opaque_call(fn: Callable[P, R]) -> Callable[P, R]:
    """Mark compiled code, whose kernels a recorder of operations cannot see."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        session = SESSION.get()
        return fn(*args, **kwargs) if session is None else session.run_opaquely(fn, args, kwargs)

    return call


def partitioned_call(fn: Callable[..., R]) -> Callable[..., R]:
    """Mark compiled code that may be :class:`Partitioned`: eager between its parts, which are captured.

    Code without such parts is eager as a whole. When the whole call is captured it is as any compiled code.
    """

    @functools.wraps(fn)
    def call(*args: Any) -> R:
        session = SESSION.get()
        if session is None:
            return fn(*args)
        if session.captures_cuts:
            return session.run_opaquely(fn, args, {})
        if not isinstance(fn, Partitioned) or fn.works_on_copies(args):
            return session.run_eagerly(fn, args, {})
        return cast(R, session.run_in_parts(fn, args))

    return call


def capture_in_progress() -> bool:
    """Whether this thread or task is inside :func:`capture_plan`, and not in an eager part of it."""
    return SESSION.get() is not None


def capture_plan(
    fn: Callable[[], Any],
    backend: StaticGraphBackend,
    *,
    captures_cuts: bool = False,
    collect: bool = False,
    weak_outputs: bool = True,
    only_marked: bool = False,
) -> ReplayPlan:
    """Call ``fn`` once and return the plan that does the same again.

    Args:
        captures_cuts: whether functions marked with :func:`cut_step` become part of the graphs.
        collect: free unneeded memory before the first graph.
        only_marked: ``fn`` asks the device for nothing outside of functions marked as compiled code, so that
            no graph is begun before it comes to one.
        weak_outputs: let later captures use the outputs' memory; then they are right only until the next
            replay of anything in the pool.

    Returns:
        The plan; its outputs hold the results of this call.

    Raises:
        StaticGraphError: a capture is in progress, a marked function failed and ``fn`` went on, or the
            outputs want gradients. Whatever ``fn`` raises comes through. Nothing stays captured then.
    """
    if capture_in_progress():
        raise StaticGraphError("A static graph was to be captured while another one is being captured")
    session = Session(backend, captures_cuts=captures_cuts, collect=collect, only_marked=only_marked)
    token = SESSION.set(session)
    try:
        session.go_on()
        outputs = fn()
        session.end()
        session.check()
        _refuse_gradients(outputs)
    except torch.OutOfMemoryError as error:
        session.abort(error)
        raise session.failure(error) from error
    except BaseException as error:
        session.abort(error)
        raise
    finally:
        SESSION.reset(token)
    if weak_outputs:
        outputs = map_tensors(backend.weak, outputs)
    return ReplayPlan(session.plan_steps(), tuple(session.graphs), outputs, tuple(session.compiled))


def _refuse_gradients(outputs: object) -> None:
    if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in flatten(outputs)[0]):
        raise StaticGraphError(
            "A captured call returned a tensor that wants gradients",
            expected="inference: nothing is differentiated through a static graph",
            hint="call the model under torch.no_grad() or torch.inference_mode()",
        )
