"""How many GPUs a container sees, as its driver counts them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
import torch

from airflow_provider_sft.contract.errors import AcceleratorsMissingError
from tests.trainer.here import run_here
from trainer.devices import count_expected, count_gpus, find_gpus

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
# A driver of four GPUs that counts what CUDA_VISIBLE_DEVICES names.
DRIVER = """
#include <stdlib.h>
int cuInit(unsigned flags) { return STATUS; }
int cuGetErrorString(int status, const char **text) {
    *text = "system has unsupported display driver / cuda driver combination";
    return 0;
}
int cuDeviceGetCount(int *count) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *count = !visible ? 4 : *visible ? 1 : 0;
    for (; visible && *visible; visible++) *count += *visible == ',';
    return 0;
}
"""


def test_count_here_is_torchs():
    assert count_gpus(os.environ).count == torch.cuda.device_count()


@pytest.fixture
def with_driver(tmp_path):
    """The environment of a container whose driver is ours; `status` is what its start returns."""
    if shutil.which("cc") is None:
        pytest.skip("a C compiler is needed to make a driver: install gcc")

    def make(visible: str | None, status: int = 0) -> dict[str, str]:
        command = [
            "cc",
            "-shared",
            "-fPIC",
            f"-DSTATUS={status}",
            "-x",
            "c",
            "-",
            "-o",
            tmp_path / "libcuda.so.1",
        ]
        subprocess.run(command, input=DRIVER.encode(), check=True)
        environ = {"LD_LIBRARY_PATH": str(tmp_path)}
        return environ if visible is None else {**environ, "CUDA_VISIBLE_DEVICES": visible}

    return make


@pytest.mark.parametrize(("visible", "gpus"), [(None, 4), ("3", 1), ("0,1", 2), (UUID, 1), ("", 0)])
def test_count_is_the_drivers_for_what_is_visible(with_driver, visible, gpus):
    counted = count_gpus(with_driver(visible))
    assert (counted.count, counted.failed) == (gpus, False)


@pytest.mark.parametrize(("status", "failed"), [(100, False), (803, True)])
def test_count_of_a_driver_that_does_not_start_is_0_in_its_words(with_driver, status, failed):
    counted = count_gpus(with_driver("0,1", status=status))
    assert (counted.count, counted.failed) == (0, failed)
    assert f"unsupported display driver / cuda driver combination ({status})" in counted.words


def test_count_that_the_driver_ends_is_a_failure_and_not_0(with_driver, tmp_path):
    environ = with_driver(None)
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    assert count_gpus(environ).failed
    [notice] = find_gpus(environ)[1]
    assert notice.startswith("The GPUs could not be counted, so the CPU is used: ")
    assert "libcuda.so.1: file too short" in notice


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_count_without_a_driver_is_0():
    counted = count_gpus({"CUDA_VISIBLE_DEVICES": "0,1"})
    assert (counted.count, counted.failed) == (0, False)
    assert "libcuda.so.1" in counted.words


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 0),
        ({"SFT_EXPECTED_GPUS": "4"}, 4),
        ({"SFT_EXPECTED_GPUS": "4", "CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"SFT_EXPECTED_GPUS": "4", "CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"SFT_EXPECTED_GPUS": "4", "CUDA_VISIBLE_DEVICES": "1,-1,2"}, 1),
        ({"SFT_EXPECTED_GPUS": "1", "HIP_VISIBLE_DEVICES": "0,1"}, 1),
    ],
)
def test_what_the_user_hides_is_not_expected(environ, expected):
    assert count_expected(environ) == expected


@pytest.fixture
def nvidia_smi(tmp_path):
    """The environment of a container whose nvidia-smi is ours."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch' >&2\nexit 18\n"
    )
    tool.chmod(0o755)
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_gpus_that_were_requested_and_are_not_there_end_the_run_208_in_the_drivers_words(
    lora_config, nvidia_smi, tmp_path
):
    result = run_here(lora_config, SFT_EXPECTED_GPUS="2", **nvidia_smi)
    assert result["exit_code"] == 208
    assert result["reason"].startswith(
        "2 GPUs were requested for this pod, and 0 are visible. The driver says: "
    )
    for words in ("libcuda.so.1", "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"):
        assert words in result["reason"]
    assert not (tmp_path / "out" / "attempts.jsonl").exists()


def test_config_that_asks_for_the_cpu_needs_no_gpu():
    assert find_gpus({"SFT_EXPECTED_GPUS": "2"}, wants_cpu=True)[0] == torch.cuda.device_count()


def test_some_of_the_gpus_are_not_enough(with_driver):
    with pytest.raises(
        AcceleratorsMissingError, match="8 GPUs were requested for this pod, and 4 are visible"
    ):
        find_gpus(with_driver(None) | {"SFT_EXPECTED_GPUS": "8"})
    assert find_gpus(with_driver("0,1") | {"SFT_EXPECTED_GPUS": "8"}) == (2, [])
