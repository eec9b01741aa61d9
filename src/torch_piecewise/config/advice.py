"""Settings that do nothing together; told when a model is compiled, for until then they may change."""

from __future__ import annotations

from collections.abc import Iterator

from torch_piecewise.config import Config
from torch_piecewise.config.fields_setting import CAPTURE_SIZES

_ABOUT_CAPTURES = (
    "max_cudagraph_capture_size",
    "static_graph_class",
    "capture_only_in_warmup",
    "check_addresses",
)


def advice(config: Config) -> tuple[str, ...]:
    """One sentence for each thing that was given in code and has no effect.

    What the environment sets is for several models, and may be meant for another one.
    """
    given = {row.name for row in config.rows() if row.source == "given" and row.value != row.default}
    return (*_captures(config, given), *_cuts(config, given), *_word(config))


def _captures(config: Config, given: set[str]) -> Iterator[str]:
    if config.cudagraph_mode or "cudagraph_mode" in config.explicit:
        return  # 'none' that was said is meant
    named = {name for name in given if name.startswith("cudagraph_") or name in _ABOUT_CAPTURES}
    if CAPTURE_SIZES in config.compile_sizes:
        named.discard("cudagraph_capture_sizes")  # compile_sizes are about them
    if named:
        yield (
            f"nothing is captured, so {_listed(named)} {'has' if len(named) == 1 else 'have'} no effect: set "
            "cudagraph_mode='piecewise' or another that captures, or cudagraph_mode='none' if that is meant"
        )


def _word(config: Config) -> Iterator[str]:
    if CAPTURE_SIZES in config.compile_sizes and not config.resolved_capture_sizes():
        yield (
            f"{CAPTURE_SIZES!r} among compile_sizes stands for no size: give cudagraph_capture_sizes, or a "
            "cudagraph_mode"
        )


def _cuts(config: Config, given: set[str]) -> Iterator[str]:
    if config.mode == "trace_once" and "splitting_ops" in given and config.splitting_ops:
        yield "nothing is cut with mode='trace_once', so splitting_ops has no effect: set mode='piecewise'"
    if config.backend == "eager" and "inductor_compile_config" in given:
        yield "backend='eager' compiles nothing, so inductor_compile_config has no effect"


def _listed(names: set[str]) -> str:
    *most, last = sorted(names)
    return f"{', '.join(most)} and {last}" if most else last
