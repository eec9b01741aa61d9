"""What do the guards of a call cost: those of its inputs, and the look at the model's modules and parameters?

    python benchmarks/guard_cost.py [--layers 32]

One thread; medians of nine rounds, microseconds a call. The checks are those of the entry that was generated
for the stack, each kind timed by itself.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import toy

import torch_piecewise as tp

CALLS = 2000


def timed(function: Callable[..., Any], *args: Any) -> float:
    """Microseconds a call."""

    def once() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            function(*args)
        return (time.perf_counter() - start) / CALLS * 1e6

    return statistics.median(once() for _ in range(9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, ids = toy.Toy(args.layers).eval(), toy.example(4)
    with torch.no_grad():
        tp.compile(model, backend="eager", disable_cache=True, **toy.SETTINGS)(ids)
        (entry,) = tp.program_of(model)._serving.entries  # noqa: SLF001 - no user needs one
        scope = entry.call.__globals__
        function: Any = next(node for node in ast.parse(entry.source).body if hasattr(node, "args"))
        guards, read_state, compare_state = function.body[:3]
        checks = [ast.unparse(check) for check in guards.test.operand.values]
        of_modules = [check for check in checks if "_tp_state_of" in check]
        of_inputs = [check for check in checks if check not in of_modules]
        inputs = timed(eval(f"lambda ids: {' and '.join(of_inputs)}", scope), ids)
        modules = timed(eval(f"lambda: {' and '.join(of_modules)}", scope))
        lines = f"def look():\n    {ast.unparse(read_state)}\n    return {ast.unparse(compare_state.test)}"
        place = dict(scope)
        exec(lines, place)
        parameters = timed(place["look"])
    count = len(entry.state.inputs)
    print(f"inputs {inputs:.1f} us, modules {modules:.1f} us, {count} parameters {parameters:.1f} us")


if __name__ == "__main__":
    main()
