"""FSDP's flags: FSDP1's where FSDP2 runs, which accelerate passes over without a word; and any where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.wording import show

_STRATEGY = "fsdp_sharding_strategy"
# Whether weights are given back after the forward pass, which is all that sets these strategies apart in FSDP2.
_RESHARDS = {"FULL_SHARD": "true", 1: "true", "SHARD_GRAD_OP": "false", 2: "false"}
# FSDP2 does what these ask for in any case.
_ALWAYS = ("fsdp_use_orig_params", "fsdp_sync_module_states")
_NEVER = ("fsdp_backward_prefetch", "fsdp_forward_prefetch")


def fsdp_version_of(flags: Mapping[str, Any], file: Mapping[str, Any]) -> int:
    """The flag, else what the config file says, else accelerate's own default."""
    return int(flags.get("fsdp_version") or (file.get("fsdp_config") or {}).get("fsdp_version") or 1)


def translate_to_fsdp2(flags: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
    """`flags` as FSDP2 takes them, or with `fsdp_version` 1 where only that has what they ask for.

    :param notices: gets a sentence for what is not as it was written
    :raises ConfigError: FSDP2 itself is asked for, and a strategy that it has not
    """
    strategy = flags.get(_STRATEGY)
    if strategy is not None and strategy not in _RESHARDS:
        return _fall_back_to_fsdp1(flags, notices)
    idle = [name for name in _NEVER if flags.get(name) not in (None, "false")]
    notices += [
        f"accelerate_launch_args.{name} has no effect in FSDP2, and changes no number." for name in idle
    ]
    kept = {name: value for name, value in flags.items() if name not in (*_ALWAYS, *_NEVER, _STRATEGY)}
    return kept if strategy is None else {"fsdp_reshard_after_forward": _RESHARDS[strategy], **kept}


def _fall_back_to_fsdp1(flags: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
    said = f"accelerate_launch_args.{_STRATEGY} is {show(flags[_STRATEGY])}, which FSDP2 has not"
    if flags.get("fsdp_version") is not None:
        raise ConfigError(f"{said}. Set fsdp_version to 1, or drop one of them.")
    notices.append(f"{said}: this run uses FSDP1.")
    return {**flags, "fsdp_version": 1}


def refuse_fsdp_on_cpu(args: Mapping[str, Any], file: Mapping[str, Any]) -> None:
    asked = [
        name for name, value in args.items() if value and (name == "use_fsdp" or name.startswith("fsdp_"))
    ]
    if asked:
        raise ConfigError(
            f"accelerate_launch_args.{asked[0]} is set but no GPU is visible, and FSDP does nothing on CPU. "
            f"Request GPUs, or drop the FSDP flags."
        )
    if str(file.get("distributed_type", "")).upper() == "FSDP":
        raise ConfigError(
            "accelerate_launch_args.config_file asks for FSDP but no GPU is visible, and FSDP does nothing on CPU. "
            "Request GPUs, or give a config_file without FSDP."
        )
