"""Run a function in a forked child within limits of processor time and memory.

What happens to the child - an error, an endless loop, a kill - becomes a value.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

FORK = multiprocessing.get_context("fork")


@dataclass
class Child:
    """A running child: polled until ``result`` is there."""

    function: Callable[[Callable[[dict], None]], None]
    seconds: float
    gigabytes: float
    progress: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.receiver, sender = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self._run, args=(sender,))
        self.began = time.monotonic()
        self.process.start()
        sender.close()

    def _run(self, sender: Any) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        self.function(sender.send)

    def poll(self) -> dict[str, Any] | None:
        """Return what the child reported once it has ended, else None."""
        while self.receiver.poll():
            try:
                self.progress.update(self.receiver.recv())
            except EOFError:
                break
        if not self.process.is_alive():
            while self.receiver.poll():
                try:
                    self.progress.update(self.receiver.recv())
                except EOFError:
                    break
            code = self.process.exitcode or 0
            self.process.join()
            if code != 0:
                why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                self.progress.setdefault("cause", why)
            return self.progress
        try:
            process = psutil.Process(self.process.pid)
            busy, resident = sum(process.cpu_times()[:2]), process.memory_info().rss
        except psutil.NoSuchProcess:
            return None
        waited = time.monotonic() - self.began
        if busy > self.seconds or waited > 10 * self.seconds:
            return self._stop(f"not finished after {busy:.0f} s")
        if resident > self.gigabytes * 2**30:
            return self._stop(f"more than {self.gigabytes:g} GB")
        return None

    def _stop(self, why: str) -> dict[str, Any]:
        self.process.kill()
        self.process.join()
        return self.progress | {"cause": why}
