"""aLoRA: an adapter that acts from its invocation on, so the rows must hold it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from airflow_provider_sft.contract.errors import DataError
from airflow_provider_sft.contract.rules import tuning_method_of
from airflow_provider_sft.contract.settings import Settings

_BATCH_ROWS = 4096


def read_invocation(settings: Settings, tokenizer: Any) -> list[int] | None:
    """The tokens that activate an aLoRA adapter; None for any other technique."""
    values = settings.values
    if tuning_method_of(values) != "alora":
        return None
    if tokens := values.get("alora_invocation_tokens"):
        return list(tokens)
    return list(tokenizer.encode(values["alora_invocation_string"], add_special_tokens=False))


def check_invocation(rows: Any, settings: Settings, tokenizer: Any, *, say: Callable[[str], None]) -> None:
    """Say how many rows an aLoRA adapter would leave to the base model. A stream is not looked through.

    :param rows: prepared, with `input_ids`
    :raises DataError: that is all of them
    """
    tokens = read_invocation(settings, tokenizer)
    if tokens is None or not isinstance(rows, datasets.Dataset):
        return
    missing = len(rows) - count_rows_with(rows, tokens)
    shown = settings.values.get("alora_invocation_string") or tokens
    if missing == len(rows):
        raise DataError(
            f"alora_invocation_string {shown!r}, {len(tokens)} tokens, is in none of the {missing:,} rows as the "
            "tokenizer splits them. Put it into each row's prompt; a token of its own (add_special_tokens) is never "
            "split otherwise."
        )
    if missing:
        say(
            f"alora_invocation_string {shown!r} is not in {missing:,} of {len(rows):,} rows: nothing is learned there."
        )


def count_rows_with(rows: datasets.Dataset, tokens: Sequence[int]) -> int:
    """In how many rows `tokens` stand one behind the other."""
    batches = rows.select_columns("input_ids").with_format("arrow").iter(batch_size=_BATCH_ROWS)
    return sum(_count_in(table.column("input_ids").combine_chunks(), tokens) for table in batches)


def _count_in(ids: pa.ListArray, tokens: Sequence[int]) -> int:
    flat = ids.flatten().to_numpy()
    row_of = np.repeat(np.arange(len(ids)), ids.value_lengths().to_numpy())
    last_start = len(flat) - len(tokens) + 1
    if last_start < 1:
        return 0
    found = row_of[:last_start] == row_of[len(tokens) - 1 :]
    for offset, token in enumerate(tokens):
        found &= flat[offset : offset + last_start] == token
    return len(np.unique(row_of[:last_start][found]))
