"""Data sets on the Hub. `datasets` runs no code of theirs: they are files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError

from airflow_provider_sft.contract.errors import (
    AccessDeniedError,
    DataError,
    NotFoundError,
    SFTError,
    TransientError,
)


def open_hub_rows(hub_id: str, key: str, split: str, *, streaming: bool) -> Iterator[dict[str, Any]]:
    """The rows of one split.

    :param key: the config key that names the data set
    :param streaming: read them as they download
    :raises NotFoundError, AccessDeniedError, TransientError: the Hub has it not, gives it not, or is out of reach
    :raises DataError: no such split, or nothing that can be read
    """
    try:
        yield from datasets.load_dataset(hub_id, split=split, streaming=streaming)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise _unreachable(hub_id, key, error) from error
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise DataError(
            f"{key} is {hub_id!r}, which brings code of its own, and that is not run. Take a data set of files."
        ) from error
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{key} is {hub_id!r}, and its split {split!r} cannot be read ({reason}). Name a split it has with "
            "dataset_split_name."
        ) from error


def _unreachable(hub_id: str, key: str, error: Exception) -> SFTError:
    if isinstance(error, ConnectionError):
        return TransientError(
            f"{key} is {hub_id!r}, which is no file here, and the Hub cannot be reached ({error})."
        )
    if "gated" in str(error):
        return AccessDeniedError(
            f"{key} is {hub_id!r}, a gated data set, and the Hub gives it only with a token."
        )
    return NotFoundError(f"{key} is {hub_id!r}, which is neither a file here nor a data set on the Hub.")
