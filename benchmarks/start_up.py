"""How long is a start: cold, and again in a new process, beside other ways to compile the same stack?

    python benchmarks/start_up.py [--layers 4 16 64] [--runs 5] [--ways torch eager ours ...]

Whole processes. A figure is the time from the end of ``import torch`` to the first output, imports of the
way itself included, the model already built; medians. "Cold" has empty caches, precompiled header and CPU
probes included; "warm" is a new process on the caches of a cold one. "Peak" is the largest resident size
of a warm process.

Ways: ``torch`` (import torch alone), ``eager``, ``ours``, ``ours3`` (compiled for three ranges), ``plain``
(torch.compile(dynamic=True)), ``regional`` (each block compiled, as torch's regional compilation recipe
says), ``aot`` (torch.compile(...).aot_compile, saved and loaded, as its documentation says).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from processes import figures

WAYS = ("torch", "eager", "ours", "ours3", "plain", "regional", "aot")

HEAD = """
import sys, time
start = time.perf_counter()
import torch
torch_s = time.perf_counter() - start
import os, json, resource
sys.path.insert(0, {folder!r})
way, layers, cache = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if way == "torch":
    first = 0.0
else:
    import toy
    torch.manual_seed(0)
    model = toy.Toy(layers).eval()
    ids = toy.example(5)
    with torch.no_grad():
        start = time.perf_counter()
        if way in ("ours", "ours3"):
            import torch_piecewise as tp
            ranges = dict(compile_ranges_endpoints=[16, 256]) if way == "ours3" else {{}}
            call = tp.compile(model, cache_dir=cache, **toy.SETTINGS, **ranges)
        elif way == "plain":
            call = torch.compile(model, dynamic=True)
        elif way == "regional":
            for block in model.layers:
                block.compile(dynamic=True)
            call = model
        elif way == "aot":
            saved = os.path.join(cache, "saved")
            if not os.path.exists(saved):
                torch._dynamo.mark_dynamic(ids, 0)
                compiled = torch.compile(model, fullgraph=True).forward.aot_compile(((ids,), {{}}))
                compiled.save_compiled_function(saved)
                call = lambda x: compiled(model, x)
            else:
                with open(saved, "rb") as file:
                    scope = toy.Toy.forward.__globals__
                    loaded = torch.compiler.load_compiled_function(file, f_globals=scope)
                call = lambda x: loaded(model, x)
        else:
            call = model
        call(ids)
        first = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(dict(torch=torch_s, first=first, peak=peak)))
"""


def run(way: str, layers: int, folder: Path) -> dict[str, float]:
    env = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "XDG_CACHE_HOME": str(folder / "xdg"),
        "TMPDIR": str(folder / "tmp"),  # where torch keeps the precompiled header
    }
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    (folder / "kept").mkdir(parents=True, exist_ok=True)
    (folder / "kept").chmod(0o755)
    program = HEAD.format(folder=str(Path(__file__).parent))
    return figures(program, [way, str(layers), str(folder / "kept")], env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold-runs", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    args = parser.parse_args()
    head = ("import torch, s", "cold, s", "warm, s", "peak, MiB")
    print(f"{'layers':>6} {'way':<9} {head[0]:>15} {head[1]:>8} {head[2]:>8} {head[3]:>10}", flush=True)
    for layers in args.layers:
        with tempfile.TemporaryDirectory() as top:
            cold: dict[str, list[dict[str, float]]] = {}
            for way in args.ways:
                cold[way] = [run(way, layers, Path(top) / f"{way}{n}") for n in range(args.cold_runs)]
            # In turn, so that a change of the machine's speed meets every way alike.
            rounds = [
                {way: run(way, layers, Path(top) / f"{way}0") for way in args.ways} for _ in range(args.runs)
            ]
        for way in args.ways:
            warm = [one[way] for one in rounds]
            print(
                f"{layers:>6} {way:<9} {statistics.median(one['torch'] for one in warm):>15.2f} "
                f"{statistics.median(one['first'] for one in cold[way]):>8.2f} "
                f"{statistics.median(one['first'] for one in warm):>8.2f} "
                f"{statistics.median(one['peak'] for one in warm):>10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
