"""aLoRA's invocation: looked for in the rows before anything is trained."""

from __future__ import annotations

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sft.contract.errors import DataError
from airflow_provider_sft.contract.settings import resolve_config
from trainer.activation import check_invocation, count_rows_with

BASE = {"model_name_or_path": "org/m", "training_data_path": "/d.jsonl", "output_dir": "/o"}


def rows_of(lists) -> datasets.Dataset:
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    return datasets.Dataset.from_dict({"input_ids": lists}, features=features)


def check(lists, **keys) -> list[str]:
    told: list[str] = []
    check_invocation(rows_of(lists), resolve_config({**BASE, **keys}), None, say=told.append)
    return told


ALORA = {"peft_method": "alora", "alora_invocation_tokens": [7, 8]}


def test_invocation_in_every_row_says_nothing():
    assert check([[1, 7, 8], [7, 8, 2]], **ALORA) == []


def test_invocation_in_some_rows_says_how_many_lack_it():
    assert check([[1, 7, 8], [7, 2, 8], [7], []], **ALORA) == [
        "alora_invocation_string [7, 8] is not in 3 of 4 rows: nothing is learned there."
    ]


def test_invocation_in_no_row_is_an_error_of_the_data():
    with pytest.raises(DataError, match=r"\[7, 8\], 2 tokens, is in none of the 2 rows"):
        check([[8, 7], [7, 7]], **ALORA)


def test_lora_with_invocation_tokens_is_alora_to_the_check():
    with pytest.raises(DataError):
        check([[1]], peft_method="lora", alora_invocation_tokens=[7])


def test_any_other_technique_needs_none():
    assert check([[1]], peft_method="lora") == []


TOKENS = st.lists(st.integers(0, 2), max_size=6)


@given(st.lists(TOKENS, min_size=1, max_size=5), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_count_of_rows_is_that_of_a_plain_search(lists, wanted):
    width = len(wanted)
    plain = sum(any(ids[at : at + width] == wanted for at in range(len(ids))) for ids in lists)
    assert count_rows_with(rows_of(lists), wanted) == plain
