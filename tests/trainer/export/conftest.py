"""Tiny base models, saved once a test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.trainer.export import adapters


@pytest.fixture(scope="session")
def base_of(shared_dir: Path) -> Callable[[str], Path]:
    def get(kind: str) -> Path:
        directory = shared_dir / f"export-{kind}"
        with FileLock(shared_dir / f"export-{kind}.lock"):
            if not directory.exists():
                adapters.save_base(shared_dir / f"export-{kind}.part", kind).rename(directory)
        return directory

    return get


@pytest.fixture
def save(base_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., adapters.Saved]:
    """Save an adapter of a kind of base: `save("llama", r=4)`."""

    def get(kind: str = "llama", **lora: object) -> adapters.Saved:
        return adapters.save_adapter(base_of(kind), tmp_path / "adapter", **lora)

    return get
