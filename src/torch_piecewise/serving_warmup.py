"""A warm-up of all traces of a callable: what serves each size is made ready, then captured."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch_piecewise.config import Config
from torch_piecewise.cudagraphs import BudgetReport
from torch_piecewise.entry import Entry
from torch_piecewise.errors import GuardError, PiecewiseError
from torch_piecewise.serving import Serving
from torch_piecewise.static_calls import StaticCalls

logger = logging.getLogger("torch_piecewise")


def warm_up(
    serving: Serving, static: StaticCalls, config: Config, sizes: Sequence[int] | None
) -> BudgetReport | None:
    """See :meth:`~torch_piecewise.compiled.CompiledCall.warmup`."""
    if serving.is_restored:
        raise GuardError(
            "The model was restored: it runs uncompiled",
            expected="a compiled model",
            got="warmup() after restore()",
            hint="compile it again with tp.compile",
        )
    if not serving.entries:
        _tell_that_nothing_is_traced(serving, config)
        return None
    failed: PiecewiseError | None = None
    for entry in serving.entries:
        try:
            _warm_up(entry, static, sizes)
        except PiecewiseError as error:  # one trace's failure is not that of the others
            failed = failed or error
    if failed is not None:
        raise failed
    if static.reason and (config.cudagraph_mode or sizes is None):
        logger.warning("warmup() captured nothing: %s", static.reason)
    return static.report()


def _warm_up(entry: Entry, static: StaticCalls, sizes: Sequence[int] | None) -> None:
    program = entry.program
    others = len(program.sizes.symbols) - 1
    # A capture looks up what serves it by itself, with the other sizes of the calls so far.
    looks_up = not static.captures(program) or others <= 0
    for size in sizes or () if looks_up else ():
        program.table.find((size,) * (others + 1) if others > 0 else size)
    if entry.state.look_again():
        static.warmup(program, sizes)


def _tell_that_nothing_is_traced(serving: Serving, config: Config) -> None:
    if config.on_miss == "eager" and serving.was_called:
        logger.warning("warmup() has nothing to do: on_miss='eager', and the store has no program")
        return
    if config.on_miss == "background" and serving.was_called:
        busy = serving.background.is_busy
        raise GuardError(
            "The model is still being traced in the background" if busy else "No trace could be made",
            expected="a trace, before warmup()",
            got="on_miss='background', and no trace yet",
            hint="tp.program_of(model).wait() returns when it is done" if busy else "the log says why",
        )
    raise GuardError(
        "Nothing has been traced yet",
        expected="one call with example inputs before warmup(sizes)",
        hint="call the model once, under the grad mode it will be served with",
    )
