"""Where an adapter goes that names no place, and why PEFT could not put it there, as a sentence about the config's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peft import LoraConfig
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.wording import show

_MAX_NAMES = 12
# As peft does for the models that it knows: attention's queries and values, apart or in one layer.
_QUERIES_AND_VALUES = (("q_proj", "v_proj"), ("qkv_proj",), ("query_key_value",), ("c_attn",))


def choose_targets(model: PreTrainedModel, say: Callable[[str], None]) -> str | set[str] | None:
    """target_modules where the config names none: peft's default for the model, or what is alike; None when nothing is.

    peft looks its default up itself, but not for models whose experts it converts.
    """
    kind = model.config.model_type
    if default := TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind):
        return default if isinstance(default, str) else set(default)
    there = set(_linear_names(model))
    targets = next((names for names in _QUERIES_AND_VALUES if there.issuperset(names)), None)
    if targets is None:
        return None
    say(f"target_modules is not set, and peft has no default for {kind!r}: it is {list(targets)}.")
    return set(targets)


def spare_routers(config: LoraConfig, model: PreTrainedModel, say: Callable[[str], None]) -> None:
    """Keep an adapter off linear layers that give more than their product: the routers of some mixtures of experts.

    'all-linear' leaves them out, in `config` and in words.

    :raises ConfigError: target_modules names one
    """
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if _is_router(module, model)}
    kind = model.config.model_type
    if config.target_modules == "all-linear" and names and not config.exclude_modules:
        config.exclude_modules = names
        say(
            f"target_modules 'all-linear' leaves out {sorted(names)}, which choose the experts of a {kind!r} model."
        )
    elif isinstance(config.target_modules, set) and (named := names & config.target_modules):
        raise ConfigError(
            f"Config key 'target_modules' names {min(named)!r}, which chooses the experts of a {kind!r} model and takes no "
            "adapter. Drop it."
        )


def _is_router(module: nn.Module, model: PreTrainedModel) -> bool:
    own = type(module).__module__ == type(model).__module__
    return own and isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward


def check_saved_modules(model: PreTrainedModel, values: Mapping[str, Any]) -> None:
    """Refuse a name in modules_to_save that the model does not have: peft passes it by.

    :raises ConfigError: naming it
    """
    names = [name for name, _ in model.named_modules()]
    for wanted in values.get("modules_to_save") or []:
        if not any(name.endswith(wanted) for name in names):
            raise ConfigError(
                f"Config key 'modules_to_save' names {wanted!r}, and a {model.config.model_type!r} model has no such "
                f"module. Drop it, or name one that it has, such as lm_head or {_linear_names(model)[0]}."
            )


def explain_misfit(error: ValueError, model: PreTrainedModel, values: Mapping[str, Any]) -> str:
    """
    :param error: PEFT's
    :param values: the config's
    """
    kind, targets = model.config.model_type, values.get("target_modules")
    if "lora_dropout" in str(error):
        return (
            f"Config key 'lora_dropout' is {values['lora_dropout']}, and the experts of a {kind!r} model, which target_modules "
            f"{show(targets)} reaches, take no dropout. Set lora_dropout to 0, or name other target_modules."
        )
    if not targets and not values.get("target_parameters"):
        return (
            f"Config key 'target_modules' is missing, and peft has no default for a {kind!r} model. "
            f"Set it to ['all-linear'], or to some of {_list_names(model)}."
        )
    if targets and "not found in the base model" in str(error):
        return (
            f"Config key 'target_modules' is {show(targets)}, and a {kind!r} model has no such layer. "
            f"Set it to ['all-linear'], or to some of {_list_names(model)}."
        )
    return f"The adapter does not fit this {kind!r} model: {error}"


def _list_names(model: PreTrainedModel) -> str:
    return ", ".join(_linear_names(model)[:_MAX_NAMES])


def _linear_names(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    linear = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    return list(dict.fromkeys(linear))
