"""The memory limit and the kernel's kills are those of this process's own cgroup, wherever it is mounted."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from trainer.cgroup import count_oom_kills, memory_limit_bytes

GIB = 2**30
NO_LIMIT_V1 = 9223372036854771712
V2_MOUNT = "30 23 0:26 {root} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {root} {at} rw,relatime shared:9 - cgroup cgroup rw,memory"
CPU_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"


@pytest.fixture
def host(tmp_path):
    """A file system with `cgroups` (what /proc/self/cgroup says), `mounts`, and files by directory: limit and kills."""

    def make(cgroups, mounts, *, v2=(), v1=()):
        proc = tmp_path / "proc" / "self"
        proc.mkdir(parents=True)
        (proc / "cgroup").write_text("\n".join(cgroups) + "\n")
        (proc / "mountinfo").write_text("\n".join(["22 1 0:20 / / rw - ext4 /dev/sda rw", *mounts]) + "\n")
        for path, limit, kills in v2:
            write(
                tmp_path / path,
                "memory.max",
                limit,
                "memory.events",
                f"oom 9\noom_kill {kills}\noom_group_kill 0\n",
            )
        for path, limit, kills in v1:
            write(
                tmp_path / path,
                "memory.limit_in_bytes",
                limit,
                "memory.oom_control",
                f"under_oom 0\noom_kill {kills}\n",
            )
        return tmp_path

    return make


def write(directory, limit_name, limit, events_name, events):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / limit_name).write_text(f"{limit}\n")
    (directory / events_name).write_text(events)


def test_v2_of_a_container_with_a_namespace(host):
    root = host(
        ["0::/"], [V2_MOUNT.format(root="/", at="/sys/fs/cgroup")], v2=[("sys/fs/cgroup", 2 * GIB, 3)]
    )
    assert (count_oom_kills(root), memory_limit_bytes(root)) == (3, 2 * GIB)


def test_v2_of_a_service_counts_its_own_kills_and_the_least_limit_above_it(host):
    """systemd on a host: the slice has the limit, another service of it has other kills."""
    at = "sys/fs/cgroup"
    tree = [(f"{at}/system.slice", GIB, 7), (f"{at}/system.slice/worker.service", "max", 1)]
    root = host(
        ["0::/system.slice/worker.service"],
        [V2_MOUNT.format(root="/", at="/sys/fs/cgroup")],
        v2=[*tree, (f"{at}/system.slice/other.service", 5, 6)],
    )
    assert (count_oom_kills(root), memory_limit_bytes(root)) == (1, GIB)


def test_v2_of_a_container_without_a_namespace_is_found_below_what_is_mounted(host):
    mount = V2_MOUNT.format(root="/docker/abc", at="/sys/fs/cgroup")
    root = host(
        ["0::/docker/abc/job"], [mount], v2=[("sys/fs/cgroup/job", "max", 2), ("sys/fs/cgroup", 4 * GIB, 2)]
    )
    assert (count_oom_kills(root), memory_limit_bytes(root)) == (2, 4 * GIB)


def test_v1_of_a_slurm_job(host):
    at = "sys/fs/cgroup/memory"
    root = host(
        ["11:cpu,cpuacct:/slurm", "4:cpuset,memory:/slurm/uid_1/job_2/step_0", "0::/"],
        [CPU_MOUNT, V1_MOUNT.format(root="/", at="/sys/fs/cgroup/memory")],
        v1=[
            (at, NO_LIMIT_V1, 0),
            (f"{at}/slurm/uid_1/job_2", GIB, 5),
            (f"{at}/slurm/uid_1/job_2/step_0", 2 * GIB, 4),
        ],
    )
    assert (count_oom_kills(root), memory_limit_bytes(root)) == (4, GIB)


def test_v1_beside_a_v2_that_accounts_for_no_memory(host):
    root = host(
        ["4:memory:/job", "0::/job"],
        [
            V2_MOUNT.format(root="/", at="/sys/fs/cgroup/unified"),
            V1_MOUNT.format(root="/", at="/sys/fs/cgroup/memory"),
        ],
        v1=[("sys/fs/cgroup/memory/job", GIB, 1)],
    )
    (root / "sys/fs/cgroup/unified/job").mkdir(parents=True)
    assert (count_oom_kills(root), memory_limit_bytes(root)) == (1, GIB)


def test_mount_that_hides_another_and_has_a_blank_in_its_name(host):
    mounts = [
        V2_MOUNT.format(root="/", at="/my\\040groups"),
        V2_MOUNT.format(root="/job", at="/my\\040groups"),
    ]
    root = host(["0::/job"], mounts, v2=[("my groups", GIB, 1)])
    assert (count_oom_kills(root), memory_limit_bytes(root)) == (1, GIB)


@pytest.mark.parametrize(
    "cgroups", [[], ["0::/elsewhere"], ["0::/../outside"], ["garbage", "::", "4:memory"]]
)
def test_where_nothing_is_seen_there_is_no_limit_and_no_kill(host, cgroups):
    root = host(cgroups, [V2_MOUNT.format(root="/other", at="/sys/fs/cgroup"), "garbage", "1 2 - cgroup2"])
    assert (count_oom_kills(root), memory_limit_bytes(root)) == (0, None)


@pytest.fixture
def nested():
    """A real cgroup below one that has the limit, without a mount of its own: a service on a host."""
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    outer = Path("/sys/fs/cgroup" if v2 else "/sys/fs/cgroup/memory") / f"sft-test-{uuid.uuid4().hex[:8]}"
    inner = outer / "inner"
    try:
        outer.mkdir()
        if v2:
            (outer / "cgroup.subtree_control").write_text("+memory")
        inner.mkdir()
        (outer / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(64 * 2**20))
    except OSError as error:
        pytest.skip(f"No memory cgroup can be made here: {error}")
    yield inner
    for directory in (inner, outer):
        directory.rmdir()


IN_A_GROUP = """
import os, pathlib, subprocess, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from trainer.cgroup import count_oom_kills, memory_limit_bytes
before = count_oom_kills()
hog = subprocess.run([sys.executable, "-c", "bytearray(256 * 2**20)"])
print(memory_limit_bytes(), count_oom_kills() - before, hog.returncode)
"""


def test_kill_in_a_real_nested_cgroup_is_counted_with_the_limit_above_it(nested):
    command = [sys.executable, "-c", IN_A_GROUP, str(nested)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.stdout.split() == [str(64 * 2**20), "1", "-9"]
