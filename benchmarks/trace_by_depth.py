"""Does tracing grow with the depth of a model whose blocks are alike?

    python benchmarks/trace_by_depth.py [--depths 4 32 128] [--runs 3]

Seconds of the trace alone, each in a process of its own: with alike blocks copied, and with each traced.
The last column is what one more layer costs between the two greatest depths.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from processes import figures

CHILD = """
import json, sys, time, torch
sys.path.insert(0, {folder!r})
import toy
from torch_piecewise.torch_private import dynamo
def trace(depth, share):
    ids = toy.example(5)
    dynamo.mark_dynamic(ids, 0)
    model = toy.Toy(depth).eval()
    start = time.monotonic()
    raw = dynamo.capture_fullgraph(
        model.forward, (ids,), {{}}, shape_settings={{"backed_size_oblivious": True}},
        dynamo_settings={{"assume_static_by_default": True}}, share_blocks=share,
    )
    return time.monotonic() - start, raw.blocks_shared
with torch.no_grad():
    trace(1, False)  # what any first trace in a process pays
    seconds, shared = trace(int(sys.argv[1]), sys.argv[2] == "copied")
print(json.dumps(dict(seconds=seconds, shared=shared)))
"""


def run(depth: int, way: str) -> dict[str, float]:
    program = CHILD.format(folder=str(Path(__file__).parent))
    return figures(program, [str(depth), way], os.environ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 32, 128])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    depths = sorted(args.depths)
    print(f"{'':>7} " + " ".join(f"{depth:>7}" for depth in depths) + f" {'ms a layer':>11}")
    for way in ("copied", "plain"):
        middle = [statistics.median(run(depth, way)["seconds"] for _ in range(args.runs)) for depth in depths]
        slope = ""
        if len(depths) > 1:
            slope = f"{1000 * (middle[-1] - middle[-2]) / (depths[-1] - depths[-2]):.1f}"
        print(f"{way:>7} " + " ".join(f"{seconds:>6.2f}s" for seconds in middle) + f" {slope:>11}")


if __name__ == "__main__":
    main()
