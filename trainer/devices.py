"""How many accelerators this container sees, without importing torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

# The driver itself counts, so that CUDA_VISIBLE_DEVICES, UUIDs and MIG slices mean what they mean to torch.
# In a process of its own: the driver starts threads that the parent should not keep.
_COUNT = """
import ctypes
def count(library, init, get):
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    number = ctypes.c_int(0)
    if init and getattr(driver, init)(0):
        return 0
    return 0 if getattr(driver, get)(ctypes.byref(number)) else number.value
print(count("libcuda.so.1", "cuInit", "cuDeviceGetCount") or count("libamdhip64.so", "", "hipGetDeviceCount"))
"""


def count_gpus(environ: Mapping[str, str]) -> int:
    """GPUs visible under `environ`, 0 without a driver."""
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-I", "-c", _COUNT],
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return int(done.stdout)
    except (subprocess.SubprocessError, ValueError, OSError):
        return 0
