"""One writer an output_dir: a file lock where the file system has them, a heartbeat where it has not. Stdlib only.

The lock file holds who runs; its beat counter moves every few seconds. A lock left by a dead run is taken over: at
once on the same boot of the same host, elsewhere when its counter stands still.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from airflow_provider_sft.contract.errors import LockedError
from trainer.files import read_json, write_json
from trainer.records import Shape, read_record
from trainer.run_time import RunTime

LOCK_FILE = ".sft.lock"
RECORD_FILE = ".sft.lock.json"
_RECORD_SHAPE: Shape = {"token": str, "beat": int}
_BEAT_S = 3.0
# A counter that stands still this long belongs to a dead run.
_STALE_S = 15.0


class RunLock:
    """Held while a run writes to `output_dir`.

    :param on_lost: called, from the heartbeat's thread, when another run has taken the lock over
    :raises LockedError: on entry, when a living run holds it
    """

    def __init__(self, output_dir: Path, run_id: str, *, on_lost: Callable[[], None]) -> None:
        self._lock_path = output_dir / LOCK_FILE
        self._record_path = output_dir / RECORD_FILE
        self._on_lost = on_lost
        self._record: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "run_id": run_id,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "beat": 0,
        }
        self._stop = threading.Event()
        self._descriptor = -1
        self._has_file_lock = False

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take_file_lock()
            self._take_record()
        except LockedError:
            os.close(self._descriptor)
            raise
        threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._is_ours():
            self._record_path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _take_file_lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._locked(read_json(self._record_path) or {}) from error
        except OSError:
            # No file locks on this file system: the heartbeat alone decides.
            return
        self._has_file_lock = True

    def _take_record(self) -> None:
        holder = read_record(self._record_path, _RECORD_SHAPE)  # what else is there, no run keeps up
        if holder and not self._is_dead(holder):
            raise self._locked(holder)
        write_json(self._record_path, self._record)

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        same_boot = (holder.get("host"), holder.get("boot")) == (self._record["host"], self._record["boot"])
        if same_boot and (self._has_file_lock or not _is_alive(holder.get("pid"))):
            return True
        watched = RunTime(_BEAT_S)  # where both were frozen, the holder had no time for a beat
        while watched.tick() < _STALE_S:
            time.sleep(_BEAT_S / 4)
            now = read_json(self._record_path)
            if now is None:
                return True
            if now.get("beat") != holder.get("beat") or now.get("token") != holder.get("token"):
                return False
        return True

    def _locked(self, holder: dict[str, Any]) -> LockedError:
        who = (
            holder.get("run_id")
            or f"process {holder.get('pid', '?')} on {holder.get('host', 'another host')}"
        )
        return LockedError(f"{self._lock_path.parent} is held by another run ({who}).")

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_S):
            if not self._is_ours():
                self._on_lost()
                return
            self._record["beat"] += 1
            # A full disk must not end the run here: the save that meets it will say so.
            with contextlib.suppress(OSError):
                write_json(self._record_path, self._record)

    def _is_ours(self) -> bool:
        record = read_json(self._record_path)
        return record is None or record.get("token") == self._record["token"]


def _is_alive(pid: object) -> bool:
    """Another process with this number lives; our own number means a container that was started again."""
    return isinstance(pid, int) and pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
