"""How much a GPU holds while something runs."""

from __future__ import annotations

import time
from threading import Event, Thread

import torch


class MemoryWatch:
    """The most that the GPU held, by the driver's count, above what it held before."""

    def __init__(self) -> None:
        self._before = self._peak = self._read()
        self._done = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._peak - self._before

    def _watch(self) -> None:
        while not self._done.is_set():
            self._peak = max(self._peak, self._read())
            time.sleep(0.2)

    @staticmethod
    def _read() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free
