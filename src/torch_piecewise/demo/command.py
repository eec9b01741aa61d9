"""What ``torch-piecewise demo`` does: answer a prompt as it comes, then say how fast, against what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from torch_piecewise.demo import baselines, engine
from torch_piecewise.demo.generate import Step, check_length, generate, step_of
from torch_piecewise.demo.model import Llama
from torch_piecewise.demo.table import Run, print_table
from torch_piecewise.demo.text import Chat
from torch_piecewise.demo.weights import load_llama, model_folder

DEFAULT_PROMPT = "Why is the sky blue? Answer in two sentences."

CAPACITY = 2048
"""Positions of the model's cache. Fixed, so that what is compiled serves every prompt."""


@dataclass(frozen=True)
class Engine:
    """How the demo compiles; replaced in tests.

    Attributes:
        compile: compiles a model in place.
        facts: what to tell about it, after its first call.
    """

    compile: Callable[[Llama], None] = engine.compile_model
    facts: Callable[[Llama], engine.Facts] = engine.facts_of


def run(
    prompt: str | None,
    *,
    new_tokens: int = 64,
    out: TextIO,
    compare: bool = True,
    torch_compile: bool = False,
    folder: Path | None = None,
    using: Engine | None = None,
) -> bool:
    """Stream the answer to ``prompt``, then print the table.

    Args:
        prompt: what the user says; None for :data:`DEFAULT_PROMPT`.
        new_tokens: the most tokens of the answer.
        out: where answer and table go.
        compare: measure the same model without compiling, and transformers.
        torch_compile: measure plain ``torch.compile`` of transformers too; it compiles for over a minute.
        folder: the converted model; None for the packaged one, converted the first time.
        using: None for the library itself.

    Returns:
        Whether all runs gave the same tokens.

    Raises:
        DemoError: something is not installed, or the prompt is too long.
    """
    using = using or Engine()
    folder = folder or model_folder(say=lambda message: print(message, file=out, flush=True))
    chat = Chat.load(folder)
    ids = chat.prompt(DEFAULT_PROMPT if prompt is None else prompt)
    model = load_llama(folder, capacity=CAPACITY)
    check_length(model, ids, new_tokens)
    stream = chat.stream()

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    def show(token: int) -> None:
        write(stream.push(token))

    start = time.perf_counter()
    using.compile(model)
    setup = time.perf_counter() - start
    answer = generate(step_of(model), ids, new_tokens=new_tokens, stop=chat.stop, on_token=show)
    write(f"{stream.rest()}\n\n")

    def measured(name: str, step: Step) -> Run:
        return Run(name, generate(step, ids, new_tokens=new_tokens, stop=chat.stop))

    others = []
    if compare:
        others = [measured(*way) for way in _other_ways(folder, len(ids) + new_tokens, torch_compile)]
    print_table(using.facts(model), Run("this model, in pieces", answer, setup), others, out=out)
    return all(other.generation.tokens == answer.tokens for other in others)


def _other_ways(folder: Path, capacity: int, torch_compile: bool) -> Iterator[tuple[str, Step]]:
    theirs = baselines.load_transformers(folder)
    yield "transformers, eager, growing cache", baselines.growing_cache(theirs)
    yield "transformers, eager, static cache", baselines.static_cache(theirs, capacity=capacity)
    if torch_compile:
        compiled = baselines.compiled_static_cache(theirs, capacity=capacity)
        yield "transformers, torch.compile, static cache", compiled
    yield "this model, eager", step_of(load_llama(folder, capacity=CAPACITY))
