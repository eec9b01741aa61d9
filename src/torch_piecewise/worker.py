"""A worker process that compiles: the parent's side (:class:`Worker`) and the child's (``main``).

Both talk in length-prefixed pickles over pipes that nobody else can reach: the child is started by the
parent and reads its own standard input.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import weakref
from typing import IO, Any, Protocol

_LENGTH = struct.Struct("<Q")


_MARK = "TORCH_PIECEWISE_WORKER"


def is_worker() -> bool:
    """Whether this process compiles for another: it starts no workers of its own."""
    return _MARK in os.environ


class Task(Protocol):
    """What a worker is sent."""

    def run(self) -> tuple[Any, float]:
        """Do it; a result that can be pickled, or the exception it ended with, and the seconds it took."""
        ...


class WorkerError(Exception):
    """The worker process ended or answered nonsense."""


class Worker:
    """A child interpreter that runs one task at a time, and prepares itself from the moment it is made.

    Args:
        preparation: what it runs first, pickled (see :class:`Task`); its outcome is dropped.
    """

    def __init__(self, preparation: bytes) -> None:
        # -c instead of -m: a module run by name would be imported a second time under its own name.
        program = "from torch_piecewise.worker import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, _MARK: "1"},
        )
        self._ready = False
        # A child reads that its parent is gone only between two tasks.
        weakref.finalize(self, _end, self._process, os.getpid())
        with contextlib.suppress(OSError):  # a child that died at once is found by whoever waits for it
            self._send(preparation)

    def wait_until_ready(self) -> None:
        """Return when the preparation is done.

        Raises:
            WorkerError: the child ended.
        """
        if not self._ready:
            self._receive()
            self._ready = True

    def run(self, task: bytes) -> tuple[Any, float]:
        """Run one pickled task; what it returned or the exception it ended with, and its seconds.

        Raises:
            WorkerError: the child ended, or what it sent cannot be read.
        """
        self.wait_until_ready()
        try:
            self._send(task)
        except OSError as error:
            raise self._failure(error) from error
        return self._receive()

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the child, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was never sent cannot be flushed either
                    stream.close()

    def _send(self, payload: bytes) -> None:
        assert self._process.stdin is not None
        write_message(self._process.stdin, payload)

    def _receive(self) -> tuple[Any, float]:
        assert self._process.stdout is not None
        try:
            answer: tuple[Any, float] = pickle.loads(read_message(self._process.stdout))
        except Exception as error:
            raise self._failure(error) from error
        return answer

    def _failure(self, error: Exception) -> WorkerError:
        return WorkerError(f"exit status {self._process.poll()}: {error!r}")


def _end(process: subprocess.Popen[bytes], parent: int) -> None:
    """Kill a child that still runs; in a fork of its parent nothing happens."""
    if os.getpid() == parent and process.poll() is None:
        process.kill()
        process.wait()


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
    """The child: run what comes in until the parent is gone."""
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
        task: Task = pickle.loads(payload)
        return pickle.dumps(task.run())
    except Exception as error:  # noqa: BLE001 - told to the parent, which does the task itself
        return pickle.dumps((RuntimeError(repr(error)), 0.0))
