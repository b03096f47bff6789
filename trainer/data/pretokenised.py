"""Rows that come as `input_ids` and `labels`: checked, cut to length, otherwise as they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from airflow_provider_sft.contract.errors import DataError
from trainer.data.encode import EncodedRows
from trainer.data.masking import NOT_TRAINED
from trainer.data.row_format import describe_value
from trainer.data.rows import RowChunk


def read_tokens(chunk: RowChunk, vocabulary: int, max_length: int) -> EncodedRows:
    """
    :param vocabulary: number of token ids there are
    :raises DataError: a row is no two lists of token ids of one length
    """
    ids, labels, lengths, whole_lengths = [], [], [], []
    for index in range(len(chunk.rows)):
        row_ids, row_labels = (
            _tokens(chunk, index, column, vocabulary) for column in ("input_ids", "labels")
        )
        if len(row_ids) != len(row_labels):
            raise DataError(
                f"{chunk.where(index)}: input_ids has {len(row_ids)} tokens and labels {len(row_labels)}. Expected as many."
            )
        ids.append(row_ids[:max_length])
        labels.append(row_labels[:max_length])
        lengths.append(len(ids[-1]))
        whole_lengths.append(len(row_ids))
    return EncodedRows(
        np.concatenate(ids),
        np.concatenate(labels),
        np.array(lengths, np.int64),
        np.array(whole_lengths, np.int64),
    )


def _tokens(chunk: RowChunk, index: int, column: str, vocabulary: int) -> npt.NDArray[np.int32]:
    value = chunk.rows[index].get(column)
    try:
        tokens = np.array(value) if value else np.zeros(0, dtype=np.int64)
    except ValueError:
        tokens = np.zeros((0, 0))
    if not isinstance(value, list) or tokens.ndim != 1 or tokens.dtype.kind != "i":
        raise DataError(
            f"{chunk.where(index)}: {column} is {describe_value(value)}. Expected a list of token ids."
        )
    lowest = NOT_TRAINED if column == "labels" else 0
    wrong = (tokens >= vocabulary) | ((tokens < 0) & (tokens != lowest))
    if wrong.any():
        raise DataError(
            f"{chunk.where(index)}: {column} holds {tokens[wrong][0]}, and the tokenizer has ids 0 to {vocabulary - 1}. "
            "Tokenise the data with this model's tokenizer."
        )
    return tokens.astype(np.int32)
