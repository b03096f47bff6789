"""Run every benchmark, one after the other: `python -m tools.bench [NAME …]` runs tests/bench/bench_NAME.py."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BENCH_DIR = Path(__file__).parent.parent / "tests" / "bench"


def find_scripts(names: list[str]) -> list[Path]:
    scripts = sorted(BENCH_DIR.glob("bench_*.py"))
    known = {script.stem.removeprefix("bench_"): script for script in scripts}
    if unknown := set(names) - set(known):
        raise SystemExit(f"No benchmark {min(unknown)!r} in {BENCH_DIR}. Choose from: {', '.join(known)}.")
    return [known[name] for name in names] or scripts


def run_script(script: Path) -> bool:
    print(f"== {script.stem}", flush=True)
    started_at = time.monotonic()
    succeeded = subprocess.run([sys.executable, str(script)], check=False).returncode == 0
    print(
        f"== {script.stem}: {'ok' if succeeded else 'FAILED'}, {time.monotonic() - started_at:.0f} s\n",
        flush=True,
    )
    return succeeded


def main(argv: list[str]) -> int:
    outcomes = [run_script(script) for script in find_scripts(argv)]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
