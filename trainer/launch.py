"""From `accelerate_launch_args` to the command line that starts the ranks. No torch.

One process is started directly, in the environment that `accelerate launch` would make; more than one, or anything
that accelerate's launcher does itself (DeepSpeed, FSDP, Megatron, fp8), goes through that launcher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.names import FSDP_DEFAULTS_ENV_VAR, SET_NUM_PROCESSES_ENV_VAR
from airflow_provider_sft.contract.outcome import Distributed
from airflow_provider_sft.contract.wording import show
from trainer.fsdp_flags import fsdp_version_of, refuse_fsdp_on_cpu, translate_to_fsdp2
from trainer.nodes import Nodes, read_nodes
from trainer.yaml_text import read_yaml_file

DEFAULT_FSDP_FILE = Path(__file__).with_name("fsdp.yaml")
RANK_MODULE = "trainer.train"
# What the driver counted, for a rank whose torch may be able to use fewer.
COUNTED_GPUS_ENV_VAR = "SFT_COUNTED_GPUS"
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
# Fields of accelerate's config file that are read here.
_FILE_FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "num_processes": (int, "a whole number"),
    "num_machines": (int, "a whole number"),
    "distributed_type": ((str, bool), "a text such as FSDP or 'NO'"),  # YAML reads NO as false
    "mixed_precision": ((str, bool), "a text such as bf16 or 'no'"),
    "dynamo_config": (dict, "a mapping of keys to values"),
    "fsdp_config": (dict, "a mapping of keys to values"),
}
# What a log is for; the user's environment wins.
_RANK_DEFAULTS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}
# What accelerate's launcher does beyond an environment: these never take the direct way.
_LAUNCHER_FLAGS = (
    "use_fsdp",
    "use_deepspeed",
    "use_megatron_lm",
    "tpu",
    "multi_gpu",
    "mpirun_hostfile",
    "use_parallelism_config",
)


@dataclass(frozen=True)
class Launch:
    """How the ranks of this node are started.

    :param env: on top of the parent's own environment
    :param gpus: visible on this node
    """

    argv: list[str]
    env: dict[str, str]
    world_size: int
    gpus: int
    distributed: Distributed
    nodes: Nodes
    notices: list[str] = field(default_factory=list)


def plan_launch(
    args: Mapping[str, Any], environ: Mapping[str, str], *, gpus: int, scratch_dir: Path
) -> Launch:
    """
    :param args: `accelerate_launch_args`, validated
    :param gpus: visible to this node (`devices.find_gpus`)
    :param scratch_dir: where a config file is written when a switch of it is turned off
    :raises ConfigError: numbers that contradict each other, FSDP without a GPU
    :raises NotFoundError: `config_file` does not exist
    """
    nodes = read_nodes(environ)
    file = _read_config_file(args)
    world_size = _world_size(args, file, environ, nodes, gpus)
    if gpus == 0:
        refuse_fsdp_on_cpu(args, file)
    if world_size == 1 and not _needs_launcher(args, file):
        return Launch(
            [sys.executable, "-P", "-m", RANK_MODULE],
            single_process_env(args, file, environ),
            world_size,
            gpus,
            "none",
            nodes,
        )
    return _plan_accelerate(args, file, environ, world_size, gpus, nodes, scratch_dir)


def single_process_env(
    args: Mapping[str, Any], file: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, str]:
    """What accelerate's simple launcher puts into the environment of one process; an equality test holds it to that.

    OMP_NUM_THREADS is set only on request: accelerate's default of 1 would idle the cores of a container without GPU.
    """
    chosen = _Choice(args, file)
    uses_cpu = bool(args.get("cpu") or file.get("use_cpu"))
    threads = chosen("num_cpu_threads_per_process", environ.get("OMP_NUM_THREADS"))
    gpu_ids = chosen("gpu_ids", "all")
    optional = {
        "KMP_AFFINITY": "granularity=fine,compact,1,0" if uses_cpu else None,
        "KMP_BLOCKTIME": "1" if uses_cpu else None,
        "ACCELERATE_DEBUG_MODE": "true" if chosen("debug", default=False) else None,
        "ACCELERATE_CPU_AFFINITY": "1" if chosen("enable_cpu_affinity", default=False) else None,
        "OMP_NUM_THREADS": str(threads) if threads else None,
        "CUDA_VISIBLE_DEVICES": str(gpu_ids) if gpu_ids != "all" else None,
    }
    return {
        "ACCELERATE_USE_CPU": str(uses_cpu),
        "ACCELERATE_MIXED_PRECISION": str(chosen("mixed_precision", "no")),
        "ACCELERATE_DYNAMO_BACKEND": str(chosen("dynamo_backend", "no")).upper(),
        "ACCELERATE_DYNAMO_MODE": str(chosen("dynamo_mode", "default")),
        **{
            f"ACCELERATE_DYNAMO_USE_{switch.upper()}": str(
                bool(chosen(f"dynamo_use_{switch}", default=False))
            )
            for switch in ("fullgraph", "dynamic", "regional_compilation")
        },
        **{name: value for name, value in optional.items() if value is not None},
    }


@dataclass(frozen=True)
class _Choice:
    """A flag's value: the user's, else the config file's, else the default."""

    args: Mapping[str, Any]
    file: Mapping[str, Any]

    def __call__(self, name: str, default: Any) -> Any:
        dynamo = self.file.get("dynamo_config") or {}
        in_file = self.file.get(name, dynamo.get(name, dynamo.get(name.removeprefix("dynamo_"))))
        asked = self.args.get(name)
        return asked if asked is not None else default if in_file is None else in_file


def _plan_accelerate(
    args: Mapping[str, Any],
    file: Mapping[str, Any],
    environ: Mapping[str, str],
    world_size: int,
    gpus: int,
    nodes: Nodes,
    scratch_dir: Path,
) -> Launch:
    flags, notices = dict(args), []
    if gpus == 0:
        # accelerate's --cpu would start one process without ranks; its elastic launcher gives each a rank on CPU.
        flags.pop("cpu", None)
        flags["multi_gpu"] = True
        notices.append(
            f"No GPU is visible: the {world_size} processes run data-parallel (DDP) on CPU; FSDP applies to GPUs only."
        )
    elif "config_file" not in flags and _takes_default_file(flags):
        flags["config_file"] = environ.get(FSDP_DEFAULTS_ENV_VAR) or str(DEFAULT_FSDP_FILE)
        file = _read_config_file(flags)
    elif not any(flags.get(flag) for flag in _LAUNCHER_FLAGS) and "config_file" not in flags:
        flags["multi_gpu"] = True
    flags["num_processes"] = world_size
    flags |= nodes.accelerate_args()
    if nodes.count == 1:
        flags.setdefault("main_process_port", 0)
    distributed = _distributed(flags, file, gpus)
    if distributed == "fsdp2":
        flags = translate_to_fsdp2(flags, notices)
        distributed = _distributed(flags, file, gpus)
    flags = _turn_off_in_file(flags, file, scratch_dir)
    argv = [sys.executable, "-P", "-m", "accelerate.commands.launch", *to_flags(flags), "-m", RANK_MODULE]
    env = {"PYTHONSAFEPATH": "1"} | ({"ACCELERATE_USE_CPU": "True"} if gpus == 0 else {})
    return Launch(argv, env, world_size, gpus, distributed, nodes, notices)


def _takes_default_file(flags: Mapping[str, Any]) -> bool:
    """More than one GPU means FSDP, unless that is turned off or another way to distribute is asked for."""
    others = [flag for flag in _LAUNCHER_FLAGS if flag not in ("use_fsdp", "use_parallelism_config")]
    return flags.get("use_fsdp") is not False and not any(flags.get(flag) for flag in others)


def to_flags(args: Mapping[str, Any]) -> list[str]:
    """`{"debug": true, "vm": ["a", "b"], "main_process_port": 1234}` as a command line; false means off."""
    flags: list[str] = []
    for name, value in args.items():
        if value is True:
            flags.append(f"--{name}")
        elif isinstance(value, list):
            for item in value:
                flags += [f"--{name}", str(item)]
        elif value is not None and value is not False:
            flags += [f"--{name}", str(value)]
    return flags


def _world_size(
    args: Mapping[str, Any], file: Mapping[str, Any], environ: Mapping[str, str], nodes: Nodes, gpus: int
) -> int:
    asked = args.get("num_processes")
    if args.get("gpu_ids") not in (None, "all"):
        gpus = len(str(args["gpu_ids"]).split(","))
    if gpus and read_switch(environ, SET_NUM_PROCESSES_ENV_VAR, default=True):
        expected = (nodes.processes_per_node or gpus) * nodes.count
        if asked is not None and int(asked) != expected:
            raise ConfigError(_disagreement(int(asked), gpus, nodes, environ))
        return expected
    if asked is None and nodes.processes_per_node:
        return nodes.processes_per_node * nodes.count
    return int(asked or file.get("num_processes") or nodes.count)


def _disagreement(asked: int, gpus: int, nodes: Nodes, environ: Mapping[str, str]) -> str:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    shown = f" (CUDA_VISIBLE_DEVICES={visible!r})" if visible is not None else ""
    on_nodes = f" on each of {nodes.count} nodes" if nodes.count > 1 else ""
    return (
        f"accelerate_launch_args.num_processes is {asked} but the pod sees {gpus} GPUs{shown}{on_nodes}. "
        f"Request {max(asked // nodes.count, 1)} GPUs, or drop num_processes to use every visible GPU."
    )


def read_switch(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    """:raises ConfigError: neither a spelling of true nor of false"""
    value = environ.get(name, "").strip().lower()
    if not value:
        return default
    if value not in _TRUE | _FALSE:
        raise ConfigError(f"{name} is {environ[name]!r}. Set it to 'true' or 'false'.")
    return value in _TRUE


def _read_config_file(args: Mapping[str, Any]) -> dict[str, Any]:
    if not (name := args.get("config_file")):
        return {}
    key = "accelerate_launch_args.config_file"
    content = read_yaml_file(Path(name), key)
    if not isinstance(content, dict):
        raise ConfigError(f"{key} {str(name)!r} holds no mapping of keys to values.")
    for entry, (kind, expected) in _FILE_FIELDS.items():
        value = content.get(entry)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise ConfigError(f"{key} {str(name)!r}: {entry!r} is {show(value)}. Write {expected}.")
    return content


def _needs_launcher(args: Mapping[str, Any], file: Mapping[str, Any]) -> bool:
    precision = args.get("mixed_precision") or file.get("mixed_precision")
    return (
        any(args.get(flag) for flag in _LAUNCHER_FLAGS)
        or str(file.get("distributed_type", "NO")).upper() not in ("NO", "MULTI_GPU", "MULTI_CPU")
        or precision == "fp8"
    )


def _turn_off_in_file(args: dict[str, Any], file: Mapping[str, Any], scratch_dir: Path) -> dict[str, Any]:
    """Accelerate has no flag that turns a switch off: `false` over a config file's true needs a file without it."""
    off = {name for name, value in args.items() if value is False and file.get(name)}
    if not off:
        return args
    path = scratch_dir / "accelerate.yaml"
    path.write_text(yaml.safe_dump({**file, **dict.fromkeys(off, False)}), encoding="utf-8")
    return {**args, "config_file": str(path)}


def _distributed(args: Mapping[str, Any], file: Mapping[str, Any], gpus: int) -> Distributed:
    """What is planned; the ranks report what came of it."""
    uses_fsdp = args.get("use_fsdp") or str(file.get("distributed_type", "")).upper() == "FSDP"
    if gpus == 0 or not uses_fsdp:
        return "ddp"
    return "fsdp2" if fsdp_version_of(args, file) == 2 else "fsdp1"  # noqa: PLR2004


def rank_environment(launch: Launch, environ: Mapping[str, str], scratch_dir: Path) -> dict[str, str]:
    """The whole environment of the ranks."""
    from trainer.rank import SCRATCH_ENV_VAR

    return {
        **_RANK_DEFAULTS,
        **environ,
        **launch.env,
        # Sharded checkpoints hold pickles that torch would load without `weights_only`.
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        SCRATCH_ENV_VAR: os.fspath(scratch_dir),
        COUNTED_GPUS_ENV_VAR: str(launch.gpus),
    }
