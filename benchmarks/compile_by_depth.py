"""Does a deeper stack of equal blocks compile more pieces, or spend more time in compilers?

    python benchmarks/compile_by_depth.py [--depths 4 64] [--runs 3]

Each run is a process of its own with an empty store and an empty Inductor cache, after one uncounted
process that pays what every machine pays once (precompiled header, CPU probes) into a cache that all
share by copy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from processes import figures

CHILD = """
import json, sys, torch
sys.path.insert(0, {folder!r})
import toy, torch_piecewise as tp
depth = int(sys.argv[1])
model = tp.compile(toy.Toy(depth).eval(), compile_ranges_endpoints=[16], compile_sizes=[1], **toy.SETTINGS)
with torch.no_grad():
    model(toy.example(5))
handle = tp.program_of(model)
stats = handle.stats
print(json.dumps(dict(pieces=stats.pieces, distinct=stats.distinct_pieces, artifacts=stats.artifacts_compiled,
                      compile_s=stats.compile_seconds, trace_s=stats.phase_seconds["trace"])))
"""


def run(depth: int, warm: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        inductor = Path(folder) / "inductor"
        if warm.exists():
            shutil.copytree(warm, inductor)
        env = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(inductor),
            "TORCH_PIECEWISE_CACHE_DIR": str(Path(folder) / "store"),
        }
        program = CHILD.format(folder=str(Path(__file__).parent))
        found = figures(program, [str(depth)], env)
        if not warm.exists():
            shutil.copytree(inductor, warm, ignore=shutil.ignore_patterns("fxgraph", "aotautograd", "*.so"))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        warm = Path(folder) / "warm"
        run(1, warm)
        results = {depth: [run(depth, warm) for _ in range(args.runs)] for depth in args.depths}
    print(f"{'layers':>6} {'pieces':>6} {'distinct':>8} {'artifacts':>9} {'compile, s':>10} {'trace, s':>8}")
    for depth, runs in results.items():
        middle = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        print(
            f"{depth:>6} {middle['pieces']:>6.0f} {middle['distinct']:>8.0f} {middle['artifacts']:>9.0f} "
            f"{middle['compile_s']:>10.2f} {middle['trace_s']:>8.2f}"
        )


if __name__ == "__main__":
    main()
