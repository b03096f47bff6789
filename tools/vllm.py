"""Our verdict against released vLLM: `python -m tools.vllm [RELEASE …]` fetches wheels and runs tests/vllm.

A wheel is 300 to 500 MB; its Python files alone are kept, in .cache/vllm, and its dependencies are never installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE_DIR = ROOT / ".cache" / "vllm"
RELEASES = ("0.8.5", "0.11.2", "0.12.0", "0.30.0", "0.31.0", "0.33.0")
_WHEEL_BYTES = 600_000_000


def fetch_sources(release: str) -> None:
    """The wheel's Python files in .cache/vllm/RELEASE; a second call finds them there."""
    target = CACHE_DIR / release
    if target.exists():
        return
    CACHE_DIR.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(CACHE_DIR).free < 2 * _WHEEL_BYTES:
        raise SystemExit(
            f"{CACHE_DIR} has less than {2 * _WHEEL_BYTES / 1e9:.1f} GB left. Make room for a wheel."
        )
    with tempfile.TemporaryDirectory(dir=CACHE_DIR) as temporary:
        print(f"Fetching the wheel of vLLM {release}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        command += ["--only-binary", ":all:", "--dest", temporary, f"vllm=={release}"]
        subprocess.run(command, check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        _extract_python(wheel, Path(temporary) / "sources")
        (Path(temporary) / "sources").rename(target)


def _extract_python(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target, [name for name in archive.namelist() if name.endswith(".py")])


def main(releases: list[str]) -> int:
    for release in releases or RELEASES:
        fetch_sources(release)
    command = [sys.executable, "-m", "pytest", "-s", "-q", str(ROOT / "tests" / "vllm")]
    return subprocess.run(
        command, env={**os.environ, "SFT_VLLM_SOURCES": str(CACHE_DIR)}, check=False
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
