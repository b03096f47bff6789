"""`make faults`: what takes too long for `make test`. The seed is printed; SFT_FAULTS_SEED repeats it."""

from __future__ import annotations

import os
import random

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Minutes of killing: only who asks with `-m faults` gets these."""
    if "faults" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    seed = os.environ.get("SFT_FAULTS_SEED") or str(random.SystemRandom().randrange(10**9))
    print(f"\n{request.node.name}: SFT_FAULTS_SEED={seed}")
    return random.Random(seed)
