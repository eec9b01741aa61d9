"""A worker process that compiles: the parent's side (:class:`Worker`) and the child's (``main``).

Both talk in length-prefixed pickles over pipes that nobody else can reach: the child is started by the
parent and reads its own standard input.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from typing import IO, Any, Self

_LENGTH = struct.Struct("<Q")


class WorkerError(Exception):
    """The worker process ended or answered nonsense."""


class Worker:
    """A child interpreter that compiles one task at a time. A context manager: leaving it ends the child."""

    def __enter__(self) -> Self:
        # -c instead of -m: a module run by name would be imported a second time under its own name.
        program = "from torch_piecewise.worker import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def compile(self, task: bytes) -> tuple[Any, float]:
        """Compile one pickled task; the artifact or the exception it ended with, and its seconds.

        Raises:
            WorkerError: the child ended, or what it sent cannot be read.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_message(process.stdin, task)
            answer: tuple[Any, float] = pickle.loads(read_message(process.stdout))
        except Exception as error:
            raise WorkerError(f"exit status {process.poll()}: {error!r}") from error
        return answer


def write_message(stream: IO[bytes], payload: bytes) -> None:
    """Send one message."""
    stream.write(_LENGTH.pack(len(payload)))
    stream.write(payload)
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes:
    """Receive one message.

    Raises:
        EOFError: the other side is gone.
    """
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    payload = stream.read(length)
    if len(payload) < length:
        raise EOFError
    return payload


def main() -> None:
    """The child: compile what comes in until the parent is gone."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what compilers print must not meet the answers
    while True:
        try:
            task = read_message(sys.stdin.buffer)
        except EOFError:
            return
        write_message(answers, _answer(task))


def _answer(payload: bytes) -> bytes:
    try:
        task = pickle.loads(payload)
        task.options.ambient.apply_to_process()
        outcome = task.run()
        return pickle.dumps(outcome)
    except Exception as error:  # noqa: BLE001 - told to the parent, which compiles it itself
        return pickle.dumps((RuntimeError(repr(error)), 0.0))
