"""What people and tools see of a compile: dumps, torch's structured trace and logs, a line for each phase."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

from torch_piecewise.config import Config, settings
from torch_piecewise.dumps import ProgramDump
from torch_piecewise.events import Event, PhaseEnded, PieceCompileStarted
from torch_piecewise.tags import ModelTag
from torch_piecewise.torch_private.structured_trace import graph_code_log, trace_json, trace_text

if TYPE_CHECKING:
    from torch_piecewise.splitting import SplitPlan

logger = logging.getLogger("torch_piecewise")


def tell(event: Event) -> None:
    """An observer: a log line at INFO for each phase, an artifact in torch's trace for each piece's start."""
    match event:
        case PhaseEnded(phase=phase, seconds=seconds, failed=failed, tag=tag):
            logger.info("%s: %s %s %.2f s", tag.name, phase, "failed after" if failed else "took", seconds)
        case PieceCompileStarted(piece=piece, range=range, compiler=compiler):
            start = {"index": int(piece.rpartition("_")[2]), "name": piece, "range": str(range)}
            trace_json("piecewise_piece_compile_start", lambda: {**start, "compiler": compiler})


class Inspection:
    """One program in the making, shown where somebody looks.

    Args:
        config: its settings; ``debug_dump_path`` is where its folder goes.
        tag: the part of a model that it is.
        label: what is compiled, for people.
    """

    def __init__(self, config: Config, tag: ModelTag, label: str) -> None:
        self._config = config
        self._name = f"{tag.name}.{label}"
        self._before = ""
        self._dump = ProgramDump()

    def traced(self, graph: GraphModule) -> None:
        """The graph before it is cut. torch itself writes it to its trace and its logs."""
        if self._config.debug_dump_path is not None:
            self._before = graph.print_readable(print_output=False)

    def cut(self, plan: SplitPlan, runner: str) -> None:
        """The graph after it was cut, before any piece of it is compiled."""
        trace_json("piecewise_config", lambda: settings_of(self._config))
        trace_text("piecewise_cut_graph", lambda: plan.module.print_readable(print_output=False))
        trace_text("piecewise_runner", lambda: runner)
        log = graph_code_log()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("CUT GRAPH %s\n%s", self._name, plan.module.print_readable(print_output=False))
        if self._config.debug_dump_path is None:
            return
        pieces = {f"pieces/{item.submod_name}.py": item.graph for item in plan.items}
        files = {
            "computation_graph.py": self._before,
            "cut_graph.py": plan.module.print_readable(print_output=False),
            **{name: graph.print_readable(print_output=False) for name, graph in pieces.items()},
        }
        self._dump = self._written(runner, files)

    def kept(self, runner: str, pieces: Mapping[str, GraphModule]) -> None:
        """A program from the store."""
        if self._config.debug_dump_path is not None:
            graphs = {f"pieces/{name}.py": pieces[name].print_readable(print_output=False) for name in pieces}
            self._dump = self._written(runner, graphs)

    def add(self, name: str, text: str) -> None:
        """One more file for the folder."""
        self._dump.add(name, text)

    def _written(self, runner: str, files: Mapping[str, str]) -> ProgramDump:
        config = json.dumps(settings_of(self._config), default=_plain, indent=1)
        every = {"config.json": config, "runner.py": runner, **files}
        return ProgramDump.write(self._config.debug_dump_path, self._name, every)


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting by name."""
    return {name: getattr(config, name) for name in settings()}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else repr(value)
