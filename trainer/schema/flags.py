"""Accelerate's long flags as the properties of `accelerate_launch_args`.

`x-kind` says how a flag is written: `switch` (no value; false is absence), `value`, `append` (repeated), `truthy` (argparse's
`type=bool`, for which every non-empty text is true).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from trainer.schema.annotations import JSONSchema
from trainer.schema.text import first_sentences

_OTHER_CODE = "It would run other code than the trainer. Remove it."
REFUSED = {
    "module": _OTHER_CODE,
    "no_python": _OTHER_CODE,
    "main_training_function": _OTHER_CODE,
    "training_script": _OTHER_CODE,
    "training_script_args": _OTHER_CODE,
    "env": "It would change the environment of other machines. Set variables on the pod.",
    "aws_access_key_id": "It is a secret of SageMaker's, which is not used here. Remove it.",
    "aws_secret_access_key": "It is a secret of SageMaker's, which is not used here. Remove it.",
    "help": "It prints accelerate's help and trains nothing. Remove it.",
}
_TEXT_SWITCH = re.compile(r"\(true\|false\)|^If (True|`True`), ")
_CHANGES: dict[str, JSONSchema] = {
    "num_processes": {"minimum": 1},
    "num_machines": {"minimum": 1},
    "num_cpu_threads_per_process": {"minimum": 1},
    "machine_rank": {"type": "integer", "minimum": 0},
    "main_process_port": {"minimum": 0, "maximum": 65535},
    "max_restarts": {"minimum": 0},
    "zero_stage": {"minimum": 0, "maximum": 3},
    "gpu_ids": {"type": ["string", "integer"], "examples": ["0,1"]},
    "fsdp_reshard_after_forward": {"enum": ["true", "false", "FULL_SHARD", "SHARD_GRAD_OP", "NO_RESHARD"]},
    "fp8_override_linear_precision": {
        "type": "string",
        "pattern": "^((true|false),){2}(true|false)$",
        "examples": ["false,false,false"],
    },
    "megatron_lm_attention_backend": {"type": "string"},
    "offload_optimizer_device": {"enum": ["none", "cpu", "nvme"]},
    "offload_param_device": {"enum": ["none", "cpu", "nvme"]},
    "parallelism_config_cp_comm_strategy": {"enum": ["allgather", "alltoall"]},
}


def launch_schema(parser: argparse.ArgumentParser) -> JSONSchema:
    """The schema of `accelerate_launch_args`."""
    properties = {name: prop for action in parser._actions for name, prop in _properties(action)}  # noqa: SLF001
    for name, constraint in _constrained().items():
        properties[name] = {**{k: v for k, v in properties[name].items() if k != "type"}, **constraint}
    return {
        "type": "object",
        "description": "Flags of `accelerate launch` by their long names; they win over config_file.",
        "additionalProperties": False,
        "properties": properties,
        "x-short": _short_names(parser),
    }


def _properties(action: argparse.Action) -> Iterator[tuple[str, JSONSchema]]:
    name = _long_name(action)
    description = first_sentences(action.help or "")
    if name in REFUSED:
        yield name, {"description": description, "x-refused": REFUSED[name]}
        return
    prop: JSONSchema = {"description": description, "x-kind": _kind(action), **_type_of(action)}
    default = _plain_default(action)
    if default is not None:
        prop["default"] = default
    prop.update(_CHANGES.get(name, {}))
    if "enum" in prop:
        prop.pop("type", None)
    yield name, prop


def _long_name(action: argparse.Action) -> str:
    longs = [option[2:] for option in action.option_strings if option.startswith("--")]
    return longs[0] if longs else action.dest


def _short_names(parser: argparse.ArgumentParser) -> dict[str, str]:
    return {
        option[1:]: _long_name(action)
        for action in parser._actions  # noqa: SLF001
        for option in action.option_strings
        if not option.startswith("--")
    }


def _kind(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "switch"
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001
        return "append"
    return "truthy" if action.type is bool else "value"


def _type_of(action: argparse.Action) -> JSONSchema:
    if action.nargs == 0 or action.type is bool:
        return {"type": "boolean"}
    if action.choices and all(str(choice).isdigit() for choice in action.choices):
        return {"enum": [int(choice) for choice in action.choices]}
    if action.choices:
        return {"enum": list(action.choices)}
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001
        return {"type": "array", "items": {"type": "string"}}
    if _takes_true_or_false(action):
        return {"enum": ["true", "false"]}
    return {"type": {int: "integer", float: "number"}.get(action.type, "string")}  # type: ignore[call-overload]


def _takes_true_or_false(action: argparse.Action) -> bool:
    return action.default in ("true", "false") or bool(_TEXT_SWITCH.search(action.help or ""))


def _plain_default(action: argparse.Action) -> Any:
    default = action.default
    if default in (argparse.SUPPRESS, ""):
        return None
    if isinstance(default, str) and default.isdigit():
        return int(default)
    return default if isinstance(default, str | int | float | bool) else None


def _constrained() -> dict[str, JSONSchema]:
    """The choices that accelerate checks later than its parser, in its own constants."""
    from accelerate.utils import constants

    strategies = constants.FSDP_SHARDING_STRATEGY
    return {
        "fsdp_sharding_strategy": {"enum": [*strategies, *range(1, len(strategies) + 1)]},
        "fsdp_auto_wrap_policy": {"enum": list(constants.FSDP_AUTO_WRAP_POLICY)},
        "fsdp_backward_prefetch": {"enum": list(constants.FSDP_BACKWARD_PREFETCH)},
        "fsdp_state_dict_type": {"enum": list(constants.FSDP_STATE_DICT_TYPE)},
    }
