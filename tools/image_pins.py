"""Write images/requirements-*.txt: what the trainer image installs, from the tested versions in constraints.txt.

    .venv/bin/python -m tools.image_pins        (or make image-pins; needs `uv`, which reads indexes without downloading)

The CUDA file holds a digest of every file that pip may install. The CPU file pins torch's CPU build by its local
version (`+cpu`), which PyPI does not carry: no CUDA library can slip in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent
IMAGES = PROJECT / "images"
# What the trainer can use beyond its own extra and needs no compiler for.
CUDA_EXTRAS = ("trainer", "tensorboard", "bitsandbytes", "liger")
# On a CPU these have nothing to run on.
CUDA_ONLY = re.compile(r"(nvidia-|cuda-|triton|bitsandbytes|liger-kernel)")
HEADER = "# What the image installs ({variant}). `make image-pins` writes this file.\n"


def main() -> int:
    uv = shutil.which(
        "uv", path=f"{Path(sys.executable).parent}:{Path.home()}/.local/bin:/usr/local/bin:/usr/bin"
    )
    if uv is None:
        sys.stderr.write("uv is missing. Install it: .venv/bin/python -m pip install uv\n")
        return 1
    hashed = compile_pins(uv, read_requirements(CUDA_EXTRAS))
    (IMAGES / "requirements-cuda.txt").write_text(HEADER.format(variant="CUDA, hashed") + hashed)
    (IMAGES / "requirements-cpu.txt").write_text(HEADER.format(variant="CPU") + pick_cpu_pins(hashed))
    return 0


def read_requirements(extras: tuple[str, ...]) -> list[str]:
    optional = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [requirement for extra in extras for requirement in optional[extra]]


def compile_pins(uv: str, requirements: list[str]) -> str:
    """All that `requirements` need on Linux x86_64 with Python 3.11, with digests."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "requirements.in")
        wanted.write_text("\n".join(requirements))
        command = [
            uv,
            "pip",
            "compile",
            "-q",
            "--no-header",
            "--no-annotate",
            "--generate-hashes",
            str(wanted),
        ]
        command += ["-c", "constraints.txt", "--python-version", "3.11"]
        command += ["--python-platform", "x86_64-manylinux_2_28"]
        return subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout


def pick_cpu_pins(hashed: str) -> str:
    pins = re.findall(r"^([a-z0-9].*==\S+)", hashed, flags=re.MULTILINE)
    kept = [pin for pin in pins if not CUDA_ONLY.match(pin)]
    return "".join(f"{pin}+cpu\n" if pin.startswith("torch==") else f"{pin}\n" for pin in kept)


if __name__ == "__main__":
    raise SystemExit(main())
