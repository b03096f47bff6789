"""How many accelerators this container sees, and whether they are as many as were requested. No torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import AcceleratorsMissingError, ConfigError
from airflow_provider_sft.contract.names import EXPECTED_GPUS_ENV_VAR

# The driver itself counts, so that CUDA_VISIBLE_DEVICES, UUIDs and MIG slices mean what they mean to torch.
# In a process of its own: the driver starts threads that the parent should not keep.
_COUNT = """
import ctypes, json
def words_of(driver, status, describe):
    text = ctypes.c_char_p()
    try:
        if describe == "cuGetErrorString":
            driver.cuGetErrorString(status, ctypes.byref(text))
        else:
            driver.hipGetErrorString.restype = ctypes.c_char_p
            text = ctypes.c_char_p(driver.hipGetErrorString(status))
    except AttributeError:
        pass
    return (text.value or b"unknown error").decode(errors="replace")
def ask(library, init, get, describe):
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        return {"library": library, "count": 0, "absent": str(error)}
    number = ctypes.c_int(0)
    status = init and getattr(driver, init)(0) or getattr(driver, get)(ctypes.byref(number))
    if not status:
        return {"library": library, "count": number.value}
    return {"library": library, "count": 0, "status": status, "words": words_of(driver, status, describe)}
print(json.dumps([
    ask("libcuda.so.1", "cuInit", "cuDeviceGetCount", "cuGetErrorString"),
    ask("libamdhip64.so", "", "hipGetDeviceCount", "hipGetErrorString"),
]))
"""
_TIMEOUT_S, _TOOL_TIMEOUT_S = 120, 30
# CUDA's and HIP's "no device"; CUDA's "this is the stub library".
_NOT_FAILURES = (100, 34)
_NOT_THERE = "No such file"
_NARROWING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_MAX_WORDS_CHARS = 300


@dataclass(frozen=True)
class GpuCount:
    """:param words: what the drivers said, where no GPU was found
    :param failed: the count itself did: 0 is not what was counted
    """

    count: int
    words: str = ""
    failed: bool = False


def find_gpus(environ: Mapping[str, str], *, wants_cpu: bool = False) -> tuple[int, list[str]]:
    """The GPUs that are visible, and what the result should say about them.

    :param wants_cpu: the config asks for the CPU: what was requested does not matter
    :raises AcceleratorsMissingError: fewer than SFT_EXPECTED_GPUS
    :raises ConfigError: SFT_EXPECTED_GPUS is not a number
    """
    expected = 0 if wants_cpu else count_expected(environ)
    counted = count_gpus(environ)
    if counted.count < expected:
        raise missing(
            expected, counted.count, [counted.words, *_ask_around(environ)], _describe_narrowing(environ)
        )
    if counted.failed and not wants_cpu:
        return counted.count, [f"The GPUs could not be counted, so the CPU is used: {counted.words}."]
    return counted.count, []


def missing(expected: int, found: int, words: list[str], narrowing: str = "") -> AcceleratorsMissingError:
    """:param words: of the driver, torch and the tools"""
    said = "; ".join(dict.fromkeys(filter(None, words)))
    were, are = ("was", "is") if expected == 1 else ("were", "are"), "is" if found == 1 else "are"
    return AcceleratorsMissingError(
        f"{expected} GPU{'s' * (expected != 1)} {were[0]} requested for this pod, and {found} {are} visible"
        f"{narrowing}. The driver says: {said or 'nothing'}."
    )


def count_expected(environ: Mapping[str, str]) -> int:
    """What was requested, as far as the user's own CUDA_VISIBLE_DEVICES leaves it visible."""
    text = environ.get(EXPECTED_GPUS_ENV_VAR, "").strip()
    if not text:
        return 0
    if not text.isdecimal():
        raise ConfigError(f"{EXPECTED_GPUS_ENV_VAR} is {text!r}. It must be a whole number.")
    return min([int(text), *(_count_named(environ[name]) for name in _NARROWING if name in environ)])


def count_gpus(environ: Mapping[str, str]) -> GpuCount:
    """GPUs visible under `environ`; 0 without a driver."""
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-I", "-c", _COUNT],
            env=dict(environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
        answers: list[dict[str, Any]] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return GpuCount(0, f"the driver did not answer within {_TIMEOUT_S} s", failed=True)
    except OSError as error:
        return GpuCount(0, f"the count could not be started: {error.strerror}", failed=True)
    except ValueError:  # it was killed by a signal, or the driver ended it
        return GpuCount(0, f"the count ended with code {done.returncode}: {_cut(done.stderr)}", failed=True)
    found = next((answer["count"] for answer in answers if answer["count"]), 0)
    words = "; ".join(filter(None, map(_words_of, answers)))
    return GpuCount(found, "" if found else words, failed=not found and any(map(_is_failure, answers)))


def _is_failure(answer: Mapping[str, Any]) -> bool:
    if "absent" in answer:
        return _NOT_THERE not in answer["absent"]
    return answer.get("status", 0) not in (0, *_NOT_FAILURES)


def _words_of(answer: Mapping[str, Any]) -> str:
    if "absent" in answer:
        return str(answer["absent"]) if answer["library"] == "libcuda.so.1" or _is_failure(answer) else ""
    said = f"{answer['words']} ({answer['status']})" if "status" in answer else f"{answer['count']} devices"
    return f"{answer['library']}: {said}"


def _count_named(devices: str) -> int:
    """As CUDA reads it: what comes after a number below 0 is not visible."""
    count = 0
    for device in filter(None, map(str.strip, devices.split(","))):
        if device.startswith("-") or device == "NoDevFiles":
            break
        count += 1
    return count


def _describe_narrowing(environ: Mapping[str, str]) -> str:
    named = [f"{name}={environ[name]!r}" for name in _NARROWING if name in environ]
    return f" ({', '.join(named)})" if named else ""


def _ask_around(environ: Mapping[str, str]) -> list[str]:
    """What a person would look at next."""
    return [_ask_nvidia_smi(environ), _look_for_device_files(), _describe_torch()]


def _ask_nvidia_smi(environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607  # where the container runtime puts it is its own affair
            env=dict(environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nvidia-smi did not answer within {_TOOL_TIMEOUT_S} s"
    except OSError:
        return "nvidia-smi is not there"
    return f"nvidia-smi: {_cut(done.stderr or done.stdout) or f'exit code {done.returncode}'}"


def _look_for_device_files(dev: Path = Path("/dev")) -> str:
    found = sorted(path.name for pattern in ("nvidia[0-9]*", "kfd", "dxg") for path in dev.glob(pattern))
    return f"{dev} has {', '.join(found)}" if found else f"{dev} has neither nvidia0 nor kfd"


def _describe_torch() -> str:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
    return f"torch {version} of this image is built for the CPU only" if version.endswith("+cpu") else ""


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_WORDS_CHARS else f"{line[:_MAX_WORDS_CHARS]} …"
