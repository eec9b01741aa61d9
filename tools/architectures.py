"""Compile many transformers architectures and write what came of it as a table.

::

    python tools/architectures.py                    # writes docs/architectures.md
    python tools/architectures.py --only Llama T5    # prints the rows of some
    python tools/architectures.py --backend inductor --only Llama

Every model is small and random. Decoders generate: greedy, a batch with padding, with a cache, and every
logit is compared; where ``compile_causal_lm`` refuses one, ``tp.compile`` gets it without a cache.
Encoders, encoder-decoders and vision models are called at several sizes.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from architecture_models import ARCHITECTURES, BOTH, Architecture, ids
from torch import Tensor

import torch_piecewise as tp
from torch_piecewise.errors import PiecewiseError
from torch_piecewise.integrations.transformers import compile_causal_lm

TABLE = Path(__file__).parents[1] / "docs" / "architectures.md"


@dataclass(frozen=True)
class Outcome:
    """What came of one architecture.

    Attributes:
        door: through which it was compiled; empty if it was not.
        pieces: compiled pieces, cuts not counted.
        distinct: how many of them differ.
        cuts: pieces that run eagerly between them.
        difference: largest absolute difference from eager.
        same_tokens: None for those that generate none.
        note: why not, or why not through the first door.
    """

    name: str
    door: str = ""
    pieces: int = 0
    distinct: int = 0
    cuts: int = 0
    difference: float = 0.0
    same_tokens: bool | None = None
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether it compiled and gave what eager gives, rounding aside."""
        return bool(self.door) and self.difference <= 1e-4 and self.same_tokens is not False


@dataclass(frozen=True)
class _Run:
    tokens: Tensor | None
    values: list[Tensor]


def try_architecture(one: Architecture, backend: str = "eager") -> Outcome:
    """Compile ``one`` through the first door that takes it, and compare it with eager."""
    settings: dict[str, Any] = {"backend": backend, "disable_cache": True}
    if not one.causal:
        return _through("compile", one, settings, cached=False)
    try:
        return _through("compile_causal_lm", one, settings, cached=True)
    except PiecewiseError as error:
        reason = error.got or error.what
    found = _through("compile", one, settings, cached=False)
    return Outcome(**{**vars(found), "note": found.note or one.remark or reason})


def _through(door: str, one: Architecture, settings: dict[str, Any], *, cached: bool) -> Outcome:
    with torch.no_grad():
        want = _run(one, one.make(), cached=cached)
        model = one.make()
        if door == "compile_causal_lm":
            compile_causal_lm(model, **settings)
        else:
            tp.compile(model, dynamic_arg_dims=_dims(one, model), **settings)
        try:
            got = _run(one, model, cached=cached)
        except PiecewiseError as error:
            tp.program_of(model).restore()
            _run(one, model, cached=cached)  # it still runs
            reason = " ".join(f"{error.what}: {error.got}".split())
            return Outcome(one.name, note=reason[:200])
    stats = tp.program_of(model).stats
    pairs = zip(got.values, want.values, strict=True)
    difference = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    same = None if want.tokens is None or got.tokens is None else torch.equal(want.tokens, got.tokens)
    return Outcome(one.name, door, stats.pieces, stats.distinct_pieces, stats.cuts, difference, same)


def _dims(one: Architecture, model: Any) -> dict[str, Any]:
    known = inspect.signature(model.forward).parameters
    wanted = one.dims or dict.fromkeys(("input_ids", "attention_mask", "position_ids"), BOTH)
    return {name: dims for name, dims in wanted.items() if name in known}


def _run(one: Architecture, model: Any, *, cached: bool) -> _Run:
    if not one.causal:
        return _Run(None, _called(one, model))
    torch.manual_seed(1)
    tokens, values = [], []
    for batch, length in one.sizes:
        prompt = ids(batch, length)
        mask = torch.ones_like(prompt)
        if batch > 2:
            mask[0, : length // 2] = 0
        made = model.generate(
            prompt,
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            use_cache=cached,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens.append(made.sequences.flatten())
        values += made.logits
    return _Run(torch.cat(tokens), values)


def _called(one: Architecture, model: Any) -> list[Tensor]:
    assert one.inputs is not None
    torch.manual_seed(1)
    found = []
    for batch, length in one.sizes:
        result = model(**one.inputs(batch, length))
        found += [value for value in result.values() if isinstance(value, Tensor)]
    return found


_PAGE = """# Architectures

Made by `python tools/architectures.py` with transformers {transformers} and torch {torch}, on small random
models. {good} of {all} compile and agree with eager.

Decoders through `compile_causal_lm` generate with a key and value cache, greedily, a batch with padding among
the prompts; those through `compile` generate without a cache. The others are called at two sizes.
*Difference* is the largest absolute difference of any output from eager, in float32, with pieces that run
uncompiled: what the cutting changes. What compiling changes is rounding.

| architecture | agrees | through | pieces | distinct | cuts | difference | note |
|---|---|---|---:|---:|---:|---:|---|
{rows}
"""


def table(outcomes: Sequence[Outcome]) -> str:
    """The page."""
    return _PAGE.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        good=sum(outcome.agrees for outcome in outcomes),
        all=len(outcomes),
        rows="\n".join(map(_row, outcomes)),
    )


def _row(one: Outcome) -> str:
    counts = (one.pieces, one.distinct, one.cuts) if one.door else ("", "", "")
    cells = (
        one.name,
        _verdict(one),
        f"`{one.door}`" if one.door else "",
        *map(str, counts),
        f"{one.difference:.0e}" if one.difference else ("0" if one.door else ""),
        one.note.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def _verdict(outcome: Outcome) -> str:
    if not outcome.door:
        return "runs eagerly"
    return "yes" if outcome.agrees else "NO"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a compiled model differs from eager."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", default="eager", help="what compiles the pieces")
    parser.add_argument("--only", nargs="+", help="names; prints their rows and writes nothing")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    chosen = [one for one in ARCHITECTURES if not options.only or one.name in options.only]
    outcomes = []
    for one in chosen:
        outcomes.append(try_architecture(one, options.backend))
        print(outcomes[-1], flush=True)
    if not options.only:
        TABLE.write_text(table(outcomes), "utf-8")
    return int(any(outcome.door and not outcome.agrees for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
