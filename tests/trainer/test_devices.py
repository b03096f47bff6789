"""How many GPUs a container sees, as its driver counts them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
import torch

from trainer.devices import count_gpus

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
# A driver of four GPUs that counts what CUDA_VISIBLE_DEVICES names.
DRIVER = """
#include <stdlib.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDeviceGetCount(int *count) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *count = !visible ? 4 : *visible ? 1 : 0;
    for (; visible && *visible; visible++) *count += *visible == ',';
    return 0;
}
"""


def test_count_here_is_torchs():
    assert count_gpus(os.environ) == torch.cuda.device_count()


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
    assert count_gpus(with_driver(visible)) == gpus


def test_count_of_a_driver_that_does_not_start_is_0(with_driver):
    assert count_gpus(with_driver("0,1", status=100)) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_count_without_a_driver_is_0():
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) == 0
