"""What libraries raise, as the exit code and the sentence of a run."""

import errno
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from airflow_provider_sft.contract.exit_codes import ExitCode
from trainer.failures import classify

RAISED = [
    (OSError(errno.ENOSPC, "No space left on device", "/out/x"), ExitCode.STORAGE_FULL, "(/out/x)"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.STORAGE_FULL, "No space left"),
    (
        PermissionError(errno.EACCES, "Permission denied", "/m"),
        ExitCode.ACCESS_DENIED,
        "Permission denied (/m)",
    ),
    (OSError(errno.ESTALE, "Stale file handle"), ExitCode.TRANSIENT, "Stale file handle"),
    (MemoryError(), ExitCode.OUT_OF_MEMORY, "The host has no memory left"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), ExitCode.OUT_OF_MEMORY, "accelerator"),
    (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: not enough memory"),
        ExitCode.OUT_OF_MEMORY,
        "",
    ),
    (RuntimeError("[gloo] Connection closed by peer"), ExitCode.LOST_RANK, "another rank was lost"),
    (PackageNotFoundError("deepspeed>=0.9.3"), ExitCode.CONFIG, "a package that is not installed here"),
    (ImportError("Using `x` requires the Y library"), ExitCode.CONFIG, "requires the Y library Drop the key"),
    (ImportError("cannot import name 'x'"), ExitCode.INTERNAL, "cannot import name"),
    (KeyError("x"), ExitCode.INTERNAL, "KeyError: 'x'"),
]


@pytest.mark.parametrize(("error", "code", "words"), RAISED, ids=[repr(error) for error, _, _ in RAISED])
def test_error_of_a_library_has_its_exit_code_and_its_words(error, code, words):
    failure = classify(error, model="m")
    assert failure.exit_code == code
    assert words in failure.reason


def test_cause_of_an_error_counts():
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert classify(error, model="m").exit_code == ExitCode.STORAGE_FULL


@pytest.mark.parametrize("kind", [OfflineModeIsEnabled, LocalEntryNotFoundError])
def test_hub_out_of_reach_blames_the_model_only_where_it_is_no_directory(kind, tmp_path):
    elsewhere, here = (classify(kind("no network"), model=model) for model in ("org/model", str(tmp_path)))
    assert elsewhere.exit_code == here.exit_code == ExitCode.TRANSIENT
    assert elsewhere.reason == "'org/model' is no local directory and the Hub cannot be reached."
    assert "the config asks something of it, such as push_to_hub: no network" in here.reason


@pytest.mark.parametrize("optimizer", [each.value for each in OptimizerNames])
def test_optimizer_whose_package_is_missing_is_the_configs_mistake(optimizer, tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), optim=optimizer, optim_target_modules="all-linear", use_cpu=True
    )
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(2, 2))
    except Exception as error:  # noqa: BLE001  # of whatever class the library chose
        assert classify(error, model="m").exit_code == ExitCode.CONFIG  # noqa: PT017  # others work
