"""Before the model loads: what the config asks for is there, and there is room for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_sft.contract.errors import (
    AccessDeniedError,
    ConfigError,
    MemoryExhaustedError,
    StorageFullError,
)
from airflow_provider_sft.contract.settings import resolve_config
from tests.trainer.here import run_here
from trainer.preflight import check_request, check_room

BASE = {"training_data_path": "/data/t.jsonl", "dataset_text_field": "output", "save_total_limit": 1}


@pytest.fixture
def room(tmp_path, monkeypatch):
    """`check_room` on a disk and in a container of given sizes; what was warned of comes back."""

    def check(model, *, free_gb=10**6, memory_gb=10**6, gpus=0, **keys):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(0, 0, int(free_gb * 1e9))
        )
        config = {**BASE, "model_name_or_path": model, "output_dir": str(tmp_path), **keys}
        warnings = []
        check_room(
            resolve_config(config),
            tmp_path,
            gpus=gpus,
            warn=warnings.append,
            memory_bytes=int(memory_gb * 1e9),
        )
        return warnings

    return check


def test_enough_room_is_passed_in_silence(room):
    assert room("llama-1B", max_seq_length=16) == []


def test_one_checkpoint_and_the_model_that_cannot_fit_end_the_run_with_the_numbers(room, tmp_path):
    with pytest.raises(StorageFullError) as raised:
        room("llama-13B", free_gb=100)
    assert raised.value.reason == (
        f"output_dir {tmp_path} has room for 93.1 GiB and needs at least 96.9 GiB (1 checkpoint 72.6 GiB, final model "
        f"24.2 GiB), so this run cannot fit. Give it a larger volume."
    )


def test_room_for_one_checkpoint_but_not_for_all_is_a_warning(room, tmp_path):
    [warning] = room("llama-13B", free_gb=110, num_train_epochs=3, max_seq_length=1)
    assert warning == (
        f"output_dir {tmp_path} has room for 102 GiB and needs at least 170 GiB (2 checkpoints 145 GiB, final model "
        f"24.2 GiB). Lower save_total_limit, or give it a larger volume."
    )


def test_checkpoints_without_a_limit_are_a_warning(room):
    keys = {"save_strategy": "steps", "save_total_limit": None, "max_seq_length": 1}
    [warning] = room("llama-1B", **keys)
    assert "a checkpoint is 5.6 GiB, and save_total_limit is not set: all checkpoints are kept." in warning


def test_what_an_earlier_attempt_left_counts_as_room(room, tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    with (tmp_path / "checkpoint-1" / "optimizer.pt").open("wb") as file:
        file.truncate(int(7e9))
    assert room("llama-1B", free_gb=1.5, max_seq_length=1, save_strategy="epoch", num_train_epochs=1) == []


def test_memory_that_cannot_hold_the_model_ends_the_run(room):
    with pytest.raises(
        MemoryExhaustedError, match=r"memory is 46.6 GiB, the run needs at least 97.3 GiB .* it cannot fit"
    ):
        room("llama-13B", memory_gb=50)


def test_memory_that_long_rows_may_exceed_is_a_warning(room):
    [warning] = room("llama-1B", memory_gb=12, per_device_train_batch_size=8)
    assert "rows of max_length tokens roughly" in warning


def test_on_an_accelerator_the_host_needs_little(room):
    assert room("llama-13B", memory_gb=8, gpus=1) == []


def test_a_model_of_unknown_size_is_not_judged(room):
    assert room("openai-community/gpt2", free_gb=0, memory_gb=0) == []


def check(environ=None, **keys):
    config = {**BASE, "model_name_or_path": "/m", "output_dir": "/o", **keys}
    check_request(resolve_config(config), environ or {})


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"trackers": ["mlflow"]}, "Config key 'mlflow_tracking_uri' is missing, and trackers has 'mlflow'."),
        ({"trackers": ["aim"]}, "Config key 'aim_repo' is missing, and trackers has 'aim'."),
        ({"report_to": "wanbd"}, "Config key 'report_to' is 'wanbd', which is not an integration of transformers. Did you mean 'wandb'?"),
        ({"exp_metadata": "not json"}, "Config key 'exp_metadata' is 'not json', which is no JSON object."),
        ({"training_logs_filename": "../x"}, "Config key 'training_logs_filename' is '../x'. Give a file's name"),
        ({"trainer_controller_config_file": "/nowhere.yaml"}, "'/nowhere.yaml', which does not exist"),
    ],
)  # fmt: skip
def test_request_that_cannot_be_met_is_refused(keys, sentence):
    with pytest.raises(ConfigError) as raised:
        check(**keys)
    assert sentence in raised.value.reason


def test_missing_package_names_the_key_and_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError) as raised:
        check(trackers=["tensorboard", "clearml"], report_to=["wandb"])
    tensorboard, clearml, wandb = raised.value.reason.splitlines()
    assert "needs the module 'tensorboard'" in tensorboard
    assert "pip install 'airflow-provider-sft[tensorboard]'" in tensorboard
    assert "airflow-provider-sft[clearml]" in clearml
    assert "Config key 'report_to' is 'wandb', which needs the module 'wandb'" in wandb


def test_tracker_paths_stay_within_the_allowed_roots():
    keys = {"trackers": ["mlflow"], "mlflow_tracking_uri": "/etc/mlruns"}
    with pytest.raises(AccessDeniedError, match="mlflow_tracking_uri"):
        check({"SFT_ALLOWED_ROOTS": "/data"}, **keys)


def test_preflight_imports_neither_torch_nor_a_tracker():
    code = "import sys, trainer.parent; print(sorted({'torch', 'transformers', 'mlflow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_tracker_ends_a_run_64_with_nothing_written(lora_config, tmp_path):
    result = run_here({**lora_config, "trackers": ["aim"]})
    assert result["exit_code"] == 64
    assert "Config key 'aim_repo' is missing" in result["reason"]
    assert not (tmp_path / "out").exists()


def test_full_disk_is_told_before_the_model_loads(lora_config, tmp_path):
    # 40 TB of a model, by its config alone; its one weight is a small one.
    model = tmp_path / "huge"
    shutil.copytree(lora_config["model_name_or_path"], model)
    header = {"w.weight": {"dtype": "F32", "shape": [10**6, 10**7], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    settings = resolve_config({**lora_config, "model_name_or_path": str(model), "peft_method": "none"})
    with pytest.raises(StorageFullError, match="so this run cannot fit"):
        check_room(settings, tmp_path, gpus=0, warn=print)


def test_volume_of_save_model_dir_without_room_for_the_model_is_told_before_it_loads(lora_config, tmp_path):
    other_volume = Path("/dev/shm")
    if other_volume.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("There is no second volume here.")
    model = tmp_path / "large"
    shutil.copytree(lora_config["model_name_or_path"], model)
    too_many = shutil.disk_usage(other_volume).free // 4 + 1
    header = {"w.weight": {"dtype": "F32", "shape": [1, too_many], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    settings = resolve_config({
        **lora_config, "model_name_or_path": str(model), "peft_method": "none", "dtype": "float32",
        "save_model_dir": str(other_volume), "save_strategy": "no",
    })  # fmt: skip
    with pytest.raises(
        StorageFullError, match="save_model_dir /dev/shm has room for .* the tuned model needs"
    ):
        check_room(settings, tmp_path, gpus=0, warn=print)
