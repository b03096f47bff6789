"""`python -m trainer check`: what this image holds and what this node gives it, for a person to read before a run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

from airflow_provider_sft import __version__
from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.names import CONTRACT_VERSION
from airflow_provider_sft.contract.plain_text import plain_lines

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")
_OPTIONAL_PACKAGES = ("bitsandbytes", "liger-kernel", "flash-attn", "tensorboard", "mlflow", "aim", "clearml")
_SHM = Path("/dev/shm")  # noqa: S108  # where NCCL shares memory between GPUs
_SHM_BYTES = 1 << 30
_Check = Callable[[], Iterator[str]]


class NotReadyError(Exception):
    """A sentence about what would break a run here."""


def check(out: TextIO = sys.stdout) -> int:
    """Print a line for each thing; 203 when one of them would break a run."""
    ready = True
    for name, examine in CHECKS.items():
        try:
            lines = [f"ok    {name}: {line}" for line in examine()]
        except Exception as error:  # noqa: BLE001  # drivers and collectives raise more than they document
            ready = False
            reason = str(error) if isinstance(error, NotReadyError) else f"{type(error).__name__}: {error}"
            lines = [f"FAIL  {name}: {reason}"]
        out.write("".join(f"{plain_lines(line)}\n" for line in lines))
        out.flush()
    return 0 if ready else ExitCode.INTERNAL


def _versions() -> Iterator[str]:
    yield f"sft-trainer {__version__}, contract {CONTRACT_VERSION}, Python {platform.python_version()}"
    yield ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    yield f"optional: {', '.join(_installed(_OPTIONAL_PACKAGES)) or 'none'}"


def _installed(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _files() -> Iterator[str]:
    scratch = Path(tempfile.gettempdir())
    free_gib = shutil.disk_usage(scratch).free / 2**30
    yield f"scratch {scratch} is writable as {os.getuid()}:{os.getgid()}, {free_gib:.1f} GiB free"
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        yield "the Hub may be asked (HF_HUB_OFFLINE=1 forbids it)"
    else:
        yield "offline: models and data come from mounted paths alone"


def _gpus() -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        yield "none is visible: runs are on the CPU. Docker needs --gpus all, a pod a GPU resource such as nvidia.com/gpu"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        # A wheel that has no kernels for this GPU, or a driver too old for it, says so only when something runs.
        torch.ones(64, 64, dtype=torch.bfloat16, device=f"cuda:{index}").square().sum().item()
        yield (
            f"{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
        )
    shm_bytes = shutil.disk_usage(_SHM).total if _SHM.exists() else 0
    if torch.cuda.device_count() > 1 and shm_bytes < _SHM_BYTES:
        raise NotReadyError(
            f"{_SHM} has {shm_bytes >> 20} MiB for {torch.cuda.device_count()} GPUs. Give it 1 GiB or more: "
            "docker run --shm-size 8g, or a memory emptyDir at that path."
        )


def _fsdp() -> Iterator[str]:
    """One process shards a layer and goes forward and back: the libraries and the collectives load and work."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    device, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    with tempfile.TemporaryDirectory(prefix="sft-check-") as scratch:
        dist.init_process_group(backend, init_method=f"file://{scratch}/store", rank=0, world_size=1)
        try:
            layer = torch.nn.Linear(8, 8).to(device)
            fully_shard(layer)
            layer(torch.ones(1, 8, device=device)).sum().backward()
        finally:
            dist.destroy_process_group()
    yield f"FSDP2 shards over {backend}"


def _export() -> Iterator[str]:
    import trainer.export  # noqa: F401  # it must load without a compiler, a GPU or the network
    from airflow_provider_sft.contract.vllm_releases import label_of, measured_releases

    yield f"adapters are written for vLLM {label_of(measured_releases()[0])} to {label_of(measured_releases()[-1])}"


CHECKS: Mapping[str, _Check] = {
    "versions": _versions,
    "files": _files,
    "GPUs": _gpus,
    "FSDP": _fsdp,
    "vLLM export": _export,
}
