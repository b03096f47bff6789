"""Podman as the tests use it: settings for this host, a base to build on, the machine's pip for the build, runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).parents[2]
# `SFT_IMAGE_VARIANT=cuda make image-test` builds and runs the variant for GPUs: 3 GB to fetch; without a GPU it trains on the CPU.
VARIANT = os.environ.get("SFT_IMAGE_VARIANT", "cpu")
IMAGE = f"localhost/sft-trainer:test-{VARIANT}"
BASE = "localhost/sft-base:bookworm"
BASE_ENV_VAR = (
    "SFT_IMAGE_BASE"  # a base that a registry serves, such as docker.io/library/debian:bookworm-slim
)
# What a host with cgroup v1 and no CAP_SYS_RESOURCE needs: crun wants v2, and podman's own limits are above ours.
OLD_HOST = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


@dataclass(frozen=True)
class Podman:
    scratch_dir: Path

    @property
    def env(self) -> dict[str, str]:
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return dict(os.environ)
        conf = self.scratch_dir / "containers.conf"
        conf.write_text(OLD_HOST)
        return {**os.environ, "CONTAINERS_CONF": str(conf)}

    def __call__(
        self, *args: str, check: bool = True, timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["podman", *args],
            env=self.env,
            cwd=self.scratch_dir,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"podman {' '.join(args)}\n{done.stdout}{done.stderr}"
        return done

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Not in the project: conmon leaves a file named oom where it was started."""
        return subprocess.Popen(
            ["podman", *args],
            env=self.env,
            cwd=self.scratch_dir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def build(self) -> str:
        """What did not change comes from podman's layers. Prints the size by layer."""
        command = [str(PROJECT / "images/build.sh"), "--network", "host", "--build-arg", f"VARIANT={VARIANT}"]
        command += ["--build-arg", f"BASE={self._base()}", *pass_pip_on(self.scratch_dir)]
        env = {**self.env, "ENGINE": "podman", "IMAGE": IMAGE}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=2400, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        sys.stdout.write(done.stdout[done.stdout.index("Layers of ") :])
        return IMAGE

    def _base(self) -> str:
        if base := os.environ.get(BASE_ENV_VAR):
            return base
        if self("image", "exists", BASE, check=False).returncode:
            self._import_base()
        return BASE

    def _import_base(self) -> None:
        """A minimal Debian from the package archive, where no image registry can be reached."""
        with tempfile.TemporaryDirectory(dir=self.scratch_dir) as root:
            subprocess.run(
                ["debootstrap", "--variant=minbase", "bookworm", root], check=True, capture_output=True
            )
            with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
                subprocess.run(
                    ["podman", "import", "-q", "-", BASE], env=self.env, stdin=tar.stdout, check=True
                )


def pass_pip_on(scratch_dir: Path) -> list[str]:
    """Build options that give the build this machine's pip configuration: indexes, local folders, certificates."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(
        r"^\S+?\.(cert|find-links|index-url|extra-index-url|trusted-host)='(.*)'$", listed, re.MULTILINE
    )
    settings, options = dict(found), []
    if (
        VARIANT == "cuda"
    ):  # its files are those whose digests are pinned; a local folder may hold torch's CPU build
        settings.pop("find-links", None)
    if cert := settings.get("cert"):
        # Not at its own path: the package ca-certificates wants to replace what lies there.
        settings["cert"] = "/mnt/ca.crt"
        options += ["-v", f"{cert}:/mnt/ca.crt:ro"]
    for value in " ".join(
        settings.get(key, "") for key in ("find-links", "index-url", "extra-index-url")
    ).split():
        path = value.removeprefix("file://").removesuffix("/simple")
        if path.startswith("/"):
            options += ["-v", f"{path}:{path}:ro"]
    conf = scratch_dir / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    return [*options, "--secret", f"id=pip.conf,src={conf}"]


@dataclass
class Container:
    """One run of the image as a locked-down cluster runs it."""

    podman: Podman
    run_dir: Path  # holds what is mounted: output, scratch, config.json, termination-log
    process: subprocess.Popen[str]
    name: str
    output: str = field(default="", init=False)

    def wait(self, timeout_s: float = 240) -> int:
        self.output = self.process.communicate(timeout=timeout_s)[0]
        return self.process.returncode

    def stop(self) -> int:
        """As the kubelet: SIGTERM, and patience."""
        self.podman("kill", "--signal", "TERM", self.name)
        return self.wait()

    @property
    def message(self) -> dict:
        return json.loads((self.run_dir / "termination-log").read_text())

    @property
    def progress(self) -> list[dict]:
        return [json.loads(line) for line in self.output.splitlines() if '"event":"progress"' in line]

    def path(self, mounted: str) -> Path:
        """Where a path of the container lies here."""
        return self.run_dir / mounted.lstrip("/")


def restrict(*, user: int) -> list[str]:
    """What Pod Security Standard "restricted", OpenShift and a closed network make of a container."""
    options: Sequence[str] = (
        *("--network", "none", "--read-only", "--read-only-tmpfs=false"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    )
    return [*options, "--user", f"{user}:0"]
