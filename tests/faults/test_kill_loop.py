"""T1, T2: killed or told to stop at random points, again and again, a run ends with the weights of an undisturbed one."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.campaign import Campaign, kill_any, terminate
from tests.trainer.test_ranks import TWO

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]
KILLS = int(os.environ.get("SFT_FAULTS_KILLS", "20"))
KILLED = {-signal.SIGKILL, 204}
TOLD = {-signal.SIGTERM, 206}


@pytest.fixture
def config(lora_config):
    """Dropout and shuffling make it sensitive to every random state; saves take a good part of its time."""
    return {**lora_config, "max_steps": 200, "save_steps": 7, "lora_dropout": 0.2, "save_total_limit": 3}


@pytest.fixture
def full(config):
    del config["lora_dropout"]
    return {**config, "peft_method": "none", "learning_rate": 1e-3}


@pytest.fixture
def two_ranks(config):
    return {**config, "accelerate_launch_args": {"num_processes": 2}}


@pytest.mark.parametrize("kind", ["config", "full", "two_ranks"])
def test_run_killed_at_random_points_ends_bit_equal(request, start_trainer, rng, tmp_path, kind):
    campaign = Campaign(start_trainer, request.getfixturevalue(kind), TWO, rng, tmp_path)
    campaign.run(KILLS, kill_any, KILLED)


@pytest.mark.parametrize("kind", ["config", "two_ranks"])
def test_run_told_to_stop_at_random_points_ends_bit_equal(request, start_trainer, rng, tmp_path, kind):
    campaign = Campaign(start_trainer, request.getfixturevalue(kind), TWO, rng, tmp_path)
    campaign.run(max(KILLS // 2, 1), terminate, TOLD)
