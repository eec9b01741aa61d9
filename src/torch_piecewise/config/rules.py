"""Which settings contradict each other; each rule names both fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch_piecewise.errors import ConfigError

Values = Mapping[str, Any]
"""Checked values of all fields."""


def _clash(first: str, second: str, why: str, values: Values, hint: str) -> ConfigError:
    return ConfigError(
        f"{first} and {second} contradict each other",
        expected=why,
        got=f"{first}={values[first]!r}, {second}={values[second]!r}",
        hint=hint,
    )


def _dispatch_is_dynamic(values: Values) -> ConfigError | None:
    dispatch_on, dynamic = values["dispatch_on"], values["dynamic_arg_dims"]
    if dispatch_on is None or dynamic is None:
        return None
    name, _, dim = dispatch_on.rpartition(".")
    dims = {**dynamic.get(name, {}), **(values["mark_unbacked_dims"] or {}).get(name, {})}
    # A dim counted from the front cannot be compared with one counted from the back: no rank is known here.
    if int(dim) in dims or any((int(dim) < 0) != (other < 0) for other in dims):
        return None
    names = ", ".join(f"{name}.{dim}" for name, dims in dynamic.items() for dim in dims)
    return _clash(
        "dispatch_on",
        "dynamic_arg_dims",
        "dispatch_on is one of the dynamic dims",
        values,
        f"choose one of {names}, or add the dim to dynamic_arg_dims",
    )


def _misses_need_a_cache(values: Values) -> ConfigError | None:
    if not values["disable_cache"] or values["on_miss"] == "compile":
        return None
    return _clash(
        "disable_cache",
        "on_miss",
        "a cache to miss in, or on_miss='compile'",
        values,
        "without a cache everything is a miss: set disable_cache=False or on_miss='compile'",
    )


def _partition_needs_inductor(values: Values) -> ConfigError | None:
    if not values["use_inductor_graph_partition"] or values["backend"] in ("inductor", "inductor_memory"):
        return None
    return _clash(
        "use_inductor_graph_partition",
        "backend",
        "backend='inductor' or 'inductor_memory', which generate code that can be partitioned",
        values,
        "set backend='inductor', or use_inductor_graph_partition=False to cut the FX graph",
    )


def _one_captures(values: Values) -> ConfigError | None:
    inductors = values["inductor_compile_config"].get("triton.cudagraphs", False)
    if not inductors or not values["cudagraph_mode"]:
        return None
    return _clash(
        "cudagraph_mode",
        "inductor_compile_config",
        "one that captures: this library, or Inductor where 'triton.cudagraphs' is set",
        values,
        "leave 'triton.cudagraphs' out of inductor_compile_config, or set cudagraph_mode='none'",
    )


def _passes_need_inductor(values: Values) -> ConfigError | None:
    field = next((name for name in ("inductor_passes", "pass_config") if values[name]), None)
    if field is None or values["backend"] != "eager":
        return None
    return _clash(
        field,
        "backend",
        "a backend that runs graph passes; 'eager' runs each piece as it was traced",
        values,
        f"set backend='inductor', or leave {field} out",
    )


def _graph_mode_needs_mode(values: Values) -> ConfigError | None:
    graphs, mode = values["cudagraph_mode"], values["mode"]
    if mode in ("none", "stock_torch_compile") and graphs:
        why = "a mode in which this library runs the graph: 'piecewise', or 'trace_once'"
    elif mode == "trace_once" and graphs.has_piecewise_cudagraphs():
        why = "mode='piecewise' for a mode that captures pieces; mode='trace_once' has one piece"
    else:
        return None
    return _clash("cudagraph_mode", "mode", why, values, "set cudagraph_mode='none', or the mode it needs")


def _pieces_need_cuts(values: Values) -> ConfigError | None:
    uncut = values["splitting_ops"] == () and not values["use_inductor_graph_partition"]
    if not uncut or not values["cudagraph_mode"].requires_piecewise_compilation():
        return None
    return _clash(
        "cudagraph_mode",
        "splitting_ops",
        "places to cut, for a mode that captures the pieces between them",
        values,
        "set cudagraph_mode='full' to capture it uncut, or splitting_ops=None for the attention operations",
    )


def _captures_within_limit(values: Values) -> ConfigError | None:
    sizes, largest = values["cudagraph_capture_sizes"], values["max_cudagraph_capture_size"]
    if not sizes or largest is None or sizes[-1] <= largest:
        return None
    return _clash(
        "cudagraph_capture_sizes",
        "max_cudagraph_capture_size",
        f"capture sizes up to {largest}",
        values,
        f"remove the larger sizes, or set max_cudagraph_capture_size={sizes[-1]}",
    )


def _evaluation_needs_guards(values: Values) -> ConfigError | None:
    if not values["evaluate_guards"] or values["guards"] != "none":
        return None
    return _clash(
        "evaluate_guards", "guards", "guards to evaluate", values, "set guards='inputs' or guards='full'"
    )


def _failure_needs_guards(values: Values) -> ConfigError | None:
    if values["on_guard_failure"] != "error" or values["guards"] != "none":
        return None
    return _clash(
        "on_guard_failure",
        "guards",
        "guards that can fail",
        values,
        "set guards='inputs', or leave on_guard_failure out",
    )


def _full_guards_need_a_trace(values: Values) -> ConfigError | None:
    if values["guards"] != "full" or values["on_miss"] not in ("error", "eager"):
        return None
    return _clash(
        "guards",
        "on_miss",
        "on_miss='compile': Dynamo's guards cannot be kept, so each process traces",
        values,
        "set on_miss='compile', or guards='inputs', whose checks are kept with the program",
    )


_ONLY_IN_PIECES: Values = {
    "splitting_ops": None,
    "use_inductor_graph_partition": False,
    "evaluate_guards": False,
    "compile_ranges_endpoints": (),
    "compile_sizes": (),
    "guards": "inputs",
    "on_guard_failure": "recompile",
    "inductor_passes": {},
    "pass_config": {},
}
"""What plain torch.compile has nothing like, with the values that ask for nothing."""


def _stock_is_plain(values: Values) -> ConfigError | None:
    if values["mode"] != "stock_torch_compile":
        return None
    asked = next((name for name, none in _ONLY_IN_PIECES.items() if values[name] != none), None)
    if asked is not None:
        why = f"mode='piecewise', or {asked} left out: plain torch.compile has nothing like it"
        return _clash(asked, "mode", why, values, f"leave {asked} out, or choose another mode")
    if values["backend"] not in ("inductor", "inductor_memory", "eager"):
        why = "backend='inductor' or 'eager', which torch.compile has too"
        return _clash("backend", "mode", why, values, "choose one of them, or another mode")
    return None


RULES: tuple[Callable[[Values], ConfigError | None], ...] = (
    _dispatch_is_dynamic,
    _misses_need_a_cache,
    _partition_needs_inductor,
    _one_captures,
    _passes_need_inductor,
    _graph_mode_needs_mode,
    _pieces_need_cuts,
    _captures_within_limit,
    _evaluation_needs_guards,
    _failure_needs_guards,
    _full_guards_need_a_trace,
    _stock_is_plain,
)


def contradiction(values: Values) -> ConfigError | None:
    """The error for the first two fields that contradict each other; None where none do."""
    return next((error for rule in RULES if (error := rule(values)) is not None), None)
