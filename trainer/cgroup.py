"""The memory limit that this process lives under, and the kernel's kills there: by its own cgroup, wherever that is
mounted (a container, a service of systemd, a Slurm job, a plain host; cgroup v2, v1 or both). Stdlib only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_ESCAPED = re.compile(r"\\([0-7]{3})")  # a blank in a mount point


@dataclass(frozen=True)
class _Version:
    filesystem: str
    limit: str
    events: str


_V2 = _Version("cgroup2", "memory.max", "memory.events")
_V1 = _Version("cgroup", "memory.limit_in_bytes", "memory.oom_control")


def count_oom_kills(root: Path = _ROOT) -> int:
    """How often the kernel has killed in this process's cgroup for memory, whichever limit was reached.

    :param root: of the file system, for tests
    """
    for version, directories in _memory_cgroups(root):
        with contextlib.suppress(OSError, ValueError):
            for line in (directories[0] / version.events).read_text(encoding="ascii").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """The least limit of this process's cgroup and those above it, None where there is none."""
    limits = []
    for version, directories in _memory_cgroups(root):
        for directory in directories:
            with contextlib.suppress(OSError, ValueError):  # "max" is not a number
                limits.append(int((directory / version.limit).read_text(encoding="ascii")))
    # cgroup v1 writes a huge number for no limit.
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def _memory_cgroups(root: Path) -> Iterator[tuple[_Version, list[Path]]]:
    """Where memory is accounted: this process's cgroup, then the ones above it as far as they can be seen."""
    paths = _own_paths(root)
    for version in (_V2, _V1):
        if (path := paths.get(version)) is None:
            continue
        for mount_root, mount_point in _mounts(root, version):
            directory, top = _locate(path, mount_root, mount_point), mount_point
            if directory and (directory / version.events).exists():
                above = [parent for parent in directory.parents if parent.is_relative_to(top)]
                yield version, [directory, *above]
                break


def _own_paths(root: Path) -> dict[_Version, str]:
    """`0::/path` of v2, `4:memory:/path` of v1."""
    paths = {}
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                paths[_V2] = path
            elif "memory" in controllers.split(","):
                paths[_V1] = path
    return paths


def _mounts(root: Path, version: _Version) -> Iterator[tuple[str, Path]]:
    """Each mount's root within the hierarchy, and its mount point; the newest first, which hides the others."""
    try:
        lines = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in reversed(lines):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind or kind[0] != version.filesystem:  # noqa: PLR2004
            continue
        if version is _V2 or "memory" in kind[-1].split(","):
            yield _unescape(fields[3]), root / _unescape(fields[4]).lstrip("/")


def _locate(path: str, mount_root: str, mount_point: Path) -> Path | None:
    """The directory of cgroup `path` below a mount of `mount_root`, None where that is another part of the tree.

    Below a cgroup namespace, what lies outside begins with `..`.
    """
    try:
        inside = PurePosixPath(path).relative_to(mount_root)
    except ValueError:
        return None
    return None if ".." in inside.parts else mount_point / inside


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
