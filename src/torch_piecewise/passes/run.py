"""One run of passes over one graph: each timed, checked, undone and named if it breaks the graph."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from torch import fx

from torch_piecewise.errors import PassError
from torch_piecewise.passes.base import GraphPass, PassRecord
from torch_piecewise.passes.dumps import DumpFolder
from torch_piecewise.passes.ordering import stable_topological_sort
from torch_piecewise.passes.snapshot import Snapshot, order_problem
from torch_piecewise.ranges import Range

_log = logging.getLogger(__name__)


class PassRun:
    """Passes about to run.

    Args:
        passes: in order, each with what people call it.
        range: the sizes the graph serves.
        dumps: gets the graph before and after each pass.
        record: called after each pass that ran or was left out.
    """

    def __init__(
        self,
        passes: Sequence[tuple[str, GraphPass]],
        range: Range,
        dumps: DumpFolder,
        record: Callable[[PassRecord], None],
    ) -> None:
        self._passes = passes
        self._range = range
        self._dumps = dumps
        self._record = record
        self._done: list[str] = []

    def on(self, graph: fx.Graph) -> None:
        """Run the passes that apply to the range on ``graph``, in place.

        Raises:
            PassError: the graph was broken from the start, or a pass broke it and it was put back.
        """
        # Inductor sorts only after this hook, so its own passes may have left their work unsorted.
        stable_topological_sort(graph)
        problem = order_problem(graph)
        if problem is not None:
            raise PassError(
                "The graph was broken before any pass ran",
                expected="every value defined before its use, and one output",
                got=problem,
            )
        for position, (name, graph_pass) in enumerate(self._passes):
            if graph_pass.is_applicable_for_range(self._range):
                self._record(self._one(position, name, graph_pass, graph))
                self._done.append(_called(name, graph_pass))
            else:
                self._record(PassRecord(name=name, range=self._range, ran=False))

    def _one(self, position: int, name: str, graph_pass: GraphPass, graph: fx.Graph) -> PassRecord:
        nodes_before = len(graph.nodes)
        self._dumps.write(position, name, "before", graph)
        before = Snapshot(graph)
        start = time.perf_counter()
        matches, wrong, cause = _attempt(graph_pass, graph)
        seconds = time.perf_counter() - start
        if wrong is None and (problem := before.problem()) is not None:
            wrong = ("left a broken graph", problem)
        if wrong is not None:
            self._dumps.write(position, name, "broken", graph)
            raise self._error(_called(name, graph_pass), *wrong, _undone(before)) from cause
        self._dumps.write(position, name, "after", graph)
        _log.debug("Pass %s, range %s: %s matches in %.4f s", name, self._range, matches, seconds)
        return PassRecord(
            name=name,
            range=self._range,
            matches=matches,
            seconds=seconds,
            nodes_before=nodes_before,
            nodes_after=len(graph.nodes),
        )

    def _error(self, name: str, deed: str, got: str, hint: str) -> PassError:
        earlier = ", ".join(self._done) or "none"
        return PassError(
            f"The pass {name} {deed} (range {self._range}; passes before it: {earlier})",
            expected="a rewrite in place: values defined before use, operators with their arguments, "
            "the same inputs, as many outputs",
            got=got,
            hint=hint,
        )


def _called(name: str, graph_pass: GraphPass) -> str:
    """What people call the pass, with the class or function to look for where that is spelled otherwise."""
    cls = type(graph_pass)
    own = cls.__qualname__ if cls.name is GraphPass.name else graph_pass.name
    return name if own == name else f"{name} ({own})"


def _attempt(
    graph_pass: GraphPass, graph: fx.Graph
) -> tuple[int | None, tuple[str, str] | None, Exception | None]:
    """The number of matches; or what the pass did wrong, in two halves of a sentence; and why."""
    try:
        matches = graph_pass(graph)
    except Exception as error:  # noqa: BLE001 - whatever a pass raises, it is to be named
        return None, ("raised an error", f"{type(error).__name__}: {error}"), error
    if matches is not None and not isinstance(matches, int):
        deed = "returned neither a number of matches nor None"
        return None, (deed, f"{matches!r} ({type(matches).__name__})"), None
    return matches if matches is None else int(matches), None, None


def _undone(before: Snapshot) -> str:
    """Put the graph back; says what state it is in."""
    try:
        before.restore()
    except Exception as error:  # noqa: BLE001 - what the pass did wrong must be told in any case
        return f"the graph could not be put back ({type(error).__name__}: {error}), so do not use it"
    return "mend the pass; the graph is again what it was before it, and debug_dump_path shows both as text"
