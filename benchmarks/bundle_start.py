"""How long does a start from a bundle take, and how much memory?

    python benchmarks/bundle_start.py [--layers 4 16 64] [--runs 5]

Whole processes, in turn; medians. "First" is the time from the end of ``import torch`` to the first output,
the model built before: for ``bundle`` it includes importing the library. "Peak" is the largest resident size.
The bundle is baked once per depth, which is shown and not part of a start.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from processes import figures

PROGRAM = """
import sys, time
start = time.perf_counter()
import torch
torch_s = time.perf_counter() - start
import json, resource
sys.path.insert(0, {folder!r})
way, layers, bundle = sys.argv[1], int(sys.argv[2]), sys.argv[3]
first = 0.0
if way != "torch":
    import toy
    torch.manual_seed(0)
    model = toy.Toy(layers).eval()
    ids = toy.example(5)
    with torch.no_grad():
        start = time.perf_counter()
        if way == "bundle":
            import torch_piecewise as tp
            tp.load(bundle, model)
        elif way == "bake":
            import torch_piecewise as tp
            tp.bake(model, (ids,), bundle, disable_cache=True, **toy.SETTINGS)
        model(ids)
        first = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(dict(torch=torch_s, first=first, peak=peak)))
"""
WAYS = ("torch", "eager", "bundle")


def run(way: str, layers: int, bundle: Path, *, compiler: bool = False) -> dict[str, float]:
    """One process; with no compiler on its PATH unless it bakes."""
    env = {**os.environ, "XDG_CACHE_HOME": str(bundle.parent)}
    if not compiler:
        env["PATH"] = ""
    program = PROGRAM.format(folder=str(Path(__file__).parent))
    return figures(program, [way, str(layers), str(bundle)], env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    print(f"{'layers':>6} {'way':<7} {'import torch, s':>15} {'first, s':>9} {'peak, MiB':>10}", flush=True)
    for layers in args.layers:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "toy.tpb"
            baked = run("bake", layers, bundle, compiler=True)
            size = bundle.stat().st_size / 2**20
            rounds = [{way: run(way, layers, bundle) for way in WAYS} for _ in range(args.runs)]
        for way in WAYS:
            ours = [one[way] for one in rounds]
            torch_s, first, peak = (
                statistics.median(one[name] for one in ours) for name in ("torch", "first", "peak")
            )
            print(f"{layers:>6} {way:<7} {torch_s:>15.2f} {first:>9.3f} {peak:>10.0f}", flush=True)
        print(f"{layers:>6} baked in {baked['first']:.1f} s, {size:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
