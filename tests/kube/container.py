"""One container: a local process, its log with times, its termination file, and the state that the kubelet reports."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kube.process import ContainerProcess
from tests.kube.store import now

_MAX_TERMINATION_MESSAGE_BYTES = 4096
_FALLBACK_LOG_BYTES, _FALLBACK_LOG_LINES = 2048, 80


@dataclass
class ContainerLog:
    """The lines of one container with the time each was written. A follower waits on `changed`."""

    lines: list[tuple[float, bytes]] = field(default_factory=list)
    closed: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def append(self, line: bytes) -> None:
        self.lines.append((time.time(), line))
        self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    async def changed(self) -> None:
        await self._changed.wait()

    def tail(self) -> bytes:
        """What FallbackToLogsOnError makes of the log."""
        return b"".join(line for _, line in self.lines[-_FALLBACK_LOG_LINES:])[-_FALLBACK_LOG_BYTES:]

    def _wake(self) -> None:
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()


@dataclass
class Container:
    """A container of a pod, from waiting to terminated.

    :param termination_file: where the process writes its termination message
    :param on_line: called with each line of the log as it is written
    """

    spec: dict[str, Any]
    termination_file: Path
    on_line: Callable[[str], None]
    log: ContainerLog = field(default_factory=ContainerLog)
    state: dict[str, Any] = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: dict[str, Any] = field(default_factory=dict)
    restart_count: int = 0
    started_monotonic: float | None = None
    end_reason: str = ""  # OOMKilled, when the kernel did it
    forced_message: bytes | None = None
    previous_log: ContainerLog | None = None
    process: ContainerProcess | None = None
    _runtime_id: str = ""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def exit_code(self) -> int | None:
        terminated = self.state.get("terminated")
        return terminated["exitCode"] if terminated else None

    def wait_for(self, reason: str, message: str = "") -> None:
        self.state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}

    def status(self) -> dict[str, Any]:
        running = "running" in self.state
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "" if "waiting" in self.state else f"docker.io/{self.spec['image']}@sha256:{'0' * 64}",
            "containerID": self._runtime_id,
            "ready": running,
            "started": running,
            "restartCount": self.restart_count,
            "state": self.state,
            "lastState": self.last_state,
        }

    def start(self, argv: Sequence[str], env: dict[str, str], cwd: Path) -> None:
        """Start the process. :raises StartError: when it cannot be, with the runtime's text"""
        self.termination_file.write_bytes(b"")
        self.process = ContainerProcess.start(argv, env, cwd, self._write_line)
        self._runtime_id = f"containerd://{secrets.token_hex(32)}"
        self.started_monotonic = time.monotonic()
        self.state = {"running": {"startedAt": now()}}

    def terminate(self, exit_code: int, *, reason: str = "", message: str | None = None) -> None:
        """Record the end. The state is for the kubelet to publish; the log stays open until then."""
        started = self.state.get("running", {}).get("startedAt") or now()
        usual = "Completed" if exit_code == 0 else "Error"
        text = self._termination_message(exit_code) if message is None else message
        ended = {
            "exitCode": exit_code,
            "reason": reason or self.end_reason or usual,
            "startedAt": started,
            "finishedAt": now(),
        } | ({"containerID": self._runtime_id} if self._runtime_id else {})
        self.state = {"terminated": ended | ({"message": text} if text else {})}

    def restart(self) -> None:
        self.last_state, self.restart_count = self.state, self.restart_count + 1
        self.previous_log = self.log
        self.log, self.process, self.started_monotonic = ContainerLog(), None, None
        self.end_reason, self.forced_message = "", None

    def _write_line(self, line: bytes) -> None:
        self.log.append(line)
        self.on_line(line.decode(errors="replace"))

    def _termination_message(self, exit_code: int) -> str:
        """The last 4,096 bytes of the file, as the kubelet takes them; or of the log, when so configured."""
        data = self.forced_message
        if data is None:
            with contextlib.suppress(OSError):
                data = self.termination_file.read_bytes()
        fall_back = self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not data and exit_code != 0 and fall_back:
            data = self.log.tail()
        return (data or b"")[-_MAX_TERMINATION_MESSAGE_BYTES:].decode(errors="replace")
