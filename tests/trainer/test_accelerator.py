"""A GPU's memory grows in place where the GPU can, and as the user says where they say so."""

from types import SimpleNamespace

import pytest
import torch

from airflow_provider_sft.contract.errors import AcceleratorsMissingError
from trainer.accelerator import let_memory_grow, refuse_missing_gpus, take_accelerator

GPU = torch.device("cuda", 0)


@pytest.fixture
def driver(monkeypatch):
    """What torch's allocator was told; `refusal` is what the driver says to the first allocation."""
    told = SimpleNamespace(settings=[], refusal=None)

    def allocate(*_sizes, device):
        assert device == GPU
        if told.refusal:
            raise told.refusal

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.settings.append)
    return told


def test_memory_grows_in_place(driver):
    let_memory_grow(GPU, {})
    assert driver.settings == ["expandable_segments:True"]


def test_gpu_that_cannot_do_so_goes_on_as_before(driver):
    driver.refusal = RuntimeError("CUDA driver error: operation not supported")
    let_memory_grow(GPU, {})
    assert driver.settings == ["expandable_segments:True", "expandable_segments:False"]


def test_gpu_that_is_full_is_said_to_be_full(driver):
    driver.refusal = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        let_memory_grow(GPU, {})


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_users_own_setting_stands(driver, name):
    let_memory_grow(GPU, {name: "max_split_size_mb:128"})
    assert driver.settings == []


@pytest.mark.parametrize("grows", ["True", "False"])
def test_this_torch_takes_the_setting(grows):
    torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{grows}")
    assert torch._C._accelerator_getAllocatorSettings() == f"expandable_segments:{grows}"


@pytest.mark.parametrize(
    ("environ", "fsdp", "expected"),
    [
        ({}, None, torch.device("cuda", 1)),
        ({"ACCELERATE_USE_FSDP": "true"}, None, None),
        ({"ACCELERATE_USE_DEEPSPEED": "True"}, None, None),
        ({}, "full_shard", None),
    ],
)
def test_model_loads_onto_the_ranks_own_gpu_unless_it_is_dealt_out(environ, fsdp, expected):
    args = SimpleNamespace(device=torch.device("cuda", 1), fsdp=fsdp, deepspeed=None)
    assert take_accelerator(args, environ | {"PYTORCH_ALLOC_CONF": "as it is"}) == expected


def test_model_loads_on_the_cpu_where_there_is_nothing_else():
    assert (
        take_accelerator(SimpleNamespace(device=torch.device("cpu"), fsdp=None, deepspeed=None), {}) is None
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_gpus_that_torch_cannot_use_end_the_rank_in_torchs_words():
    """The driver counts them; torch is built for the CPU, or finds the driver too old."""
    with pytest.raises(AcceleratorsMissingError, match="2 GPUs were requested .* 0 are visible.*Torch|torch"):
        refuse_missing_gpus(wants_cpu=False, say=pytest.fail, environ={"SFT_EXPECTED_GPUS": "2"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_gpus_that_torch_cannot_use_and_nobody_requested_are_a_notice():
    told = []
    refuse_missing_gpus(wants_cpu=False, say=told.append, environ={"SFT_COUNTED_GPUS": "1"})
    [sentence] = told
    assert sentence.startswith("The driver has GPUs that torch cannot use, so this run is on the CPU: ")
