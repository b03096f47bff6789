"""Configs with which nothing would be learned are refused before a pod exists."""

from __future__ import annotations

import pytest

from airflow_provider_sft.contract.validation import check_config

BASE = {"model_name_or_path": "/models/m", "training_data_path": "/data/d.jsonl", "output_dir": "/data/out"}
IDLE = [
    ({"learning_rate": 0}, "'learning_rate' is 0"),
    ({"learning_rate": "0.0"}, "'learning_rate' is 0"),
    ({"max_steps": 0}, "'max_steps' is 0"),
    ({"num_train_epochs": 0}, "'num_train_epochs' is 0"),
    ({"max_steps": 1, "warmup_steps": 10}, "takes 10 of the run's 1 steps"),
    ({"max_steps": 10, "warmup_steps": 10}, "takes 10 of the run's 10 steps"),
    ({"max_steps": 10, "warmup_steps": 0.95}, "takes 10 of the run's 10 steps"),
    ({"max_steps": "10", "warmup_ratio": "0.95"}, "takes 10 of the run's 10 steps"),
    ({"max_steps": 1, "warmup_ratio": 0.03, "lr_scheduler_type": "cosine"}, "takes 1 of the run's 1 steps"),
    ({"max_steps": 4, "warmup_steps": 4, "lr_scheduler_type": "constant_with_warmup"}, "takes 4"),
    ({"warmup_ratio": 1.0}, "'warmup_ratio' is 1.0"),
]
LEARNING = [
    {"max_steps": 10, "warmup_steps": 9},
    {"max_steps": 10, "warmup_ratio": 0.9},
    {"max_steps": 4, "warmup_steps": 9, "lr_scheduler_type": "constant"},
    {"max_steps": -1, "warmup_steps": 9},
    {"learning_rate": 0, "max_steps": 0, "do_dataprocessing_only": True},
]


@pytest.mark.parametrize(("keys", "sentence"), IDLE)
def test_config_with_which_nothing_is_learned_is_refused_by_key(keys, sentence):
    (mistake,) = check_config({**BASE, **keys})
    assert sentence in mistake


@pytest.mark.parametrize("keys", LEARNING)
def test_config_that_learns_in_time_is_taken(keys):
    assert check_config({**BASE, **keys}) == []
