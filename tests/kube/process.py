"""A local process that ends as a container does: with everything it started, in whatever session or group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_READ_BYTES = 65536
_MARK = "KUBE_TEST_CONTAINER"  # an environment variable that children inherit, by which they are found again


class StartError(Exception):
    """The runtime could not start the process; the kubelet reports exit code 128."""


class ContainerProcess:
    """Started by `start`; `wait` returns when the first process has ended and the last line is read."""

    def __init__(self, process: subprocess.Popen[bytes], mark: str, on_line: Callable[[bytes], None]) -> None:
        self.pid = process.pid
        self._process, self._mark, self._on_line = process, mark, on_line
        self._exited = asyncio.Event()
        self._reading = asyncio.create_task(self._read_lines())
        self._watch_exit()

    @classmethod
    def start(
        cls, argv: Sequence[str], env: dict[str, str], cwd: Path, on_line: Callable[[bytes], None]
    ) -> ContainerProcess:
        """:raises StartError: with the runtime's text"""
        if not argv:
            raise StartError("no command specified")
        program = shutil.which(argv[0], path=env.get("PATH"))
        if program is None:
            raise StartError(f'exec: "{argv[0]}": executable file not found in $PATH')
        mark = secrets.token_hex(16)
        try:
            process = subprocess.Popen(
                [*_die_with_parent(), program, *argv[1:]],
                env=env | {_MARK: mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StartError(f"exec {argv[0]}: {(error.strerror or str(error)).lower()}") from error
        return cls(process, mark, on_line)

    async def wait(self) -> int:
        """The exit code as a shell counts it: 128 + signal for a death by signal."""
        await self._exited.wait()
        self.kill()
        code = self._process.wait()
        await self._reading
        return code if code >= 0 else 128 - code

    def send_signal(self, number: int) -> None:
        """To the first process alone, as the runtime does; SIGKILL takes all of the container."""
        if number == signal.SIGKILL:
            self.kill()
        elif not self._exited.is_set():
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the first process and all that it started."""
        if self._process.returncode is None:  # once it is reaped, its number may be somebody else's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        for pid in _find_marked(f"{_MARK}={self._mark}".encode()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _watch_exit(self) -> None:
        descriptor, loop = os.pidfd_open(self.pid), asyncio.get_running_loop()

        def note_exit() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._exited.set()

        loop.add_reader(descriptor, note_exit)

    async def _read_lines(self) -> None:
        stream, rest = asyncio.StreamReader(), b""
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), self._process.stdout
        )
        while chunk := await stream.read(_READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._on_line(line + b"\n")
        if rest:
            self._on_line(rest)
        transport.close()


def _find_marked(mark: bytes) -> Iterator[int]:
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (directory / "environ").read_bytes().split(b"\0"):
                    yield int(directory.name)


def _die_with_parent() -> list[str]:
    """A prefix that kills the process when this one is killed, so that an aborted test leaves nothing running."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
