from __future__ import annotations

from typing import Any

import pytest

from tests.trainer.data.kinds import KINDS


@pytest.fixture(scope="session", params=sorted(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Each kind of tokenizer. A test that changes it restores it."""
    return KINDS[request.param]()


@pytest.fixture(scope="session")
def bpe() -> Any:
    return KINDS["byte_level_bpe"]()
