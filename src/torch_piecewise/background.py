"""Work done beside the calls of a model: on one thread, in order, never in the way of the exit."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import queue
import threading
from collections.abc import Callable, Iterator

import torch

logger = logging.getLogger("torch_piecewise")

Job = Callable[[], None]

EXIT_SECONDS = 60.0
"""How long the process waits at its end for a job that has begun: a thread that is stopped in the middle of
torch's C++ code takes the process down with it."""


class Background:
    """Does jobs one after the other, each as if on the thread that asked for it.

    Torch's settings that belong to a thread (gradients, inference mode, autocast) and context variables are
    those of the caller of :meth:`add`. What a job raises is logged; the next one goes on. The thread ends
    when there is nothing to do, and at the end of the process nothing new is begun.

    Args:
        name: what it works for, in log lines.

    Attributes:
        has_failed: whether a job raised something.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._open = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self.has_failed = False

    @property
    def is_busy(self) -> bool:
        """Whether a job is open."""
        return self._open > 0

    @property
    def is_stopped(self) -> bool:
        """Whether the process is about to end: long jobs leave off where they can."""
        return self._stopped

    def add(self, job: Job) -> None:
        """Have ``job`` done after those added before."""
        context = contextvars.copy_context()
        under = _settings_of_this_thread()
        with self._lock:
            if self._stopped:
                return
            self._open += 1
            self._jobs.put(lambda: context.run(_run_under, under, job))
            if self._thread is None:
                atexit.register(self.stop)
                self._thread = threading.Thread(target=self._work, name=f"{self._name} (later)", daemon=True)
                self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether everything is done, within ``seconds`` (None: however long it takes)."""
        with self._idle:
            return self._idle.wait_for(lambda: self._open == 0, seconds)

    def stop(self) -> None:
        """Begin no other job; wait for the one that runs to see :attr:`is_stopped`, or to end."""
        self._stopped = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(EXIT_SECONDS)

    def _work(self) -> None:
        while True:
            with self._idle:
                if self._open == 0 or self._stopped:
                    self._open = 0
                    self._thread = None
                    atexit.unregister(self.stop)
                    self._idle.notify_all()
                    return
            job = self._jobs.get()
            try:
                job()
            except Exception:
                self.has_failed = True
                logger.exception("%s: work in the background failed; calls go on without it", self._name)
            with self._lock:
                self._open -= 1


def _run_under(settings: Callable[[], contextlib.AbstractContextManager[None]], job: Job) -> None:
    with settings():
        job()


def _settings_of_this_thread() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context manager that sets another thread as this one is set."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = [
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
    ]

    @contextlib.contextmanager
    def applied() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            for device, enabled, dtype in autocast:
                stack.enter_context(torch.autocast(device, enabled=enabled, dtype=dtype))
            yield

    return applied
