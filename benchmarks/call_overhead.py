"""What does a call cost, with next to nothing to compute, beside other ways to compile the same stack?

    python benchmarks/call_overhead.py [--layers 32] [--calls 200] [--rounds 9] [--ways eager bundle ...]

Each way in a process of its own, one thread, tiny tensors, gradients off; then rounds of all ways in turn,
each a median over calls. Figures are microseconds a call, and the ratio to torch.compile(...).aot_compile.

Ways: ``eager``, ``plain`` (torch.compile(dynamic=True)), ``aot`` (torch.compile(...).aot_compile),
``inductor`` and ``aot_inductor`` (tp.compile with these backends), ``bundle`` (tp.bake, tp.load).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

WAYS = ("eager", "plain", "aot", "inductor", "aot_inductor", "bundle")

PROGRAM = """
import json, statistics, sys, time
import torch
sys.path.insert(0, {folder!r})
import toy
import torch_piecewise as tp
way, layers, calls, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
torch.manual_seed(0)
model = toy.Toy(layers).eval()
ids = toy.example(4)
with torch.no_grad():
    want = model(ids)
    if way == "plain":
        call = torch.compile(model, dynamic=True)
    elif way == "aot":
        example = toy.example(5)
        torch._dynamo.mark_dynamic(example, 0)
        compiled = torch.compile(model, fullgraph=True).forward.aot_compile(((example,), {{}}))
        call = lambda x: compiled(model, x)
    elif way == "bundle":
        tp.bake(model, (ids,), folder + "/toy.tpb", cache_dir=folder, **toy.SETTINGS)
        call = tp.load(folder + "/toy.tpb", model)
    elif way == "eager":
        call = model
    else:
        call = tp.compile(model, backend=way, cache_dir=folder, **toy.SETTINGS)
    assert torch.allclose(call(ids), want, atol=1e-4)
    print("ready", flush=True)
    for _line in sys.stdin:
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            call(ids)
            times.append(time.perf_counter() - start)
        print(json.dumps(statistics.median(times) * 1e6), flush=True)
"""


class Way:
    """One way, ready in a process of its own."""

    def __init__(self, name: str, layers: int, calls: int, folder: Path) -> None:
        program = PROGRAM.format(folder=str(Path(__file__).parent))
        folder.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, name, str(layers), str(calls), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._pipe(self._process.stdout).readline().strip() != "ready":
            raise SystemExit(f"{name} failed")

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def measure(self) -> float:
        """Microseconds a call."""
        self._pipe(self._process.stdin).write("go\n")
        self._pipe(self._process.stdin).flush()
        return float(json.loads(self._pipe(self._process.stdout).readline()))

    def end(self) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: Way(name, args.layers, args.calls, Path(folder)) for name in args.ways}
        for way in ways.values():
            way.measure()  # the first round warms up
        rounds = [{name: way.measure() for name, way in ways.items()} for _ in range(args.rounds)]
        for way in ways.values():
            way.end()
    medians = {name: statistics.median(one[name] for one in rounds) for name in args.ways}
    base = medians.get("aot")
    print(f"{args.layers} layers, {args.layers + 1} pieces, one thread")
    for name, value in medians.items():
        print(f"{name:<13} {value:>9.0f} us{f'  {value / base:>5.2f} of aot' if base else ''}")


if __name__ == "__main__":
    main()
