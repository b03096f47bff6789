"""Where an adapter goes that names no place, and why PEFT could not put it there, as a sentence about the config's keys."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from peft import LoraConfig
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from airflow_provider_sft.contract.errors import ConfigError, InternalError
from airflow_provider_sft.contract.schema import config_keys
from airflow_provider_sft.contract.settings import Settings
from airflow_provider_sft.contract.wording import show
from trainer.failures import classify

_MAX_NAMES = 12
_MAX_REASON_CHARS = 300
_PACKAGE = re.compile(r"(?:package|install|requires)\W+([A-Za-z][\w-]*)")
_NO_TARGETS = re.compile("specify .target_modules.|No .target_modules. passed")
_USUAL = ("peft_method", "r", "lora_alpha", "lora_dropout")
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


@contextlib.contextmanager
def refusing_misfits(model: PreTrainedModel, settings: Settings) -> Iterator[None]:
    """Whatever PEFT raises while it builds what the config asks for, as a sentence about the config's keys.

    :raises ConfigError: PEFT's own errors; those of the system and the accelerator pass as they are
    """
    try:
        yield
    except Exception as error:
        known = classify(error, model=str(settings.values["model_name_or_path"]))
        if not isinstance(known, InternalError) and not isinstance(error, ImportError):
            raise
        raise ConfigError(_explain(error, model, settings)) from error


def _explain(error: Exception, model: PreTrainedModel, settings: Settings) -> str:
    values, text = settings.values, " ".join(str(error).split())[:_MAX_REASON_CHARS]
    kind, targets = model.config.model_type, values.get("target_modules")
    if isinstance(error, ImportError):
        found = _PACKAGE.search(text)
        package = error.name or (found[1] if found else text)
        return (
            f"{_name_keys(settings, text)}: the package {package!r} is needed for that and is not installed. "
            "Use an image that has it, or drop the key."
        )
    if "lora_dropout" in text:
        return (
            f"Config key 'lora_dropout' is {values['lora_dropout']}, and the experts of a {kind!r} model, which target_modules "
            f"{show(targets)} reaches, take no dropout. Set lora_dropout to 0, or name other target_modules."
        )
    if _NO_TARGETS.search(text):
        return (
            f"Config key 'target_modules' is missing, and peft has no default for a {kind!r} model. "
            f"Set it to ['all-linear'], or to some of {_list_names(model)}."
        )
    if targets and "not found in the base model" in text and not values.get("layers_to_transform"):
        return (
            f"Config key 'target_modules' is {show(targets)}, and a {kind!r} model has no such layer. "
            f"Set it to ['all-linear'], or to some of {_list_names(model)}."
        )
    return f"{_name_keys(settings, text)}: PEFT refuses that for a {kind!r} model: {text.rstrip('.')}. Correct or drop it."


def _name_keys(settings: Settings, text: str) -> str:
    """The keys at fault: those that `text` speaks of, else all that the config gives beside the usual ones."""
    keys = [
        key
        for key in settings.section("peft")
        if key in settings.given and settings.values[key] != config_keys()[key].get("default")
    ]
    named = [key for key in keys if re.search(rf"\b{key}\b", text)]
    chosen = named or [key for key in keys if key not in _USUAL] or keys
    shown = " and ".join(f"{key!r} is {show(settings.values[key])}" for key in chosen)
    return f"Config key {shown}" if shown else "Config key 'peft_method'"


def check_sub_configs(config: Any, values: Mapping[str, Any]) -> None:
    """Refuse a name inside an object such as `kasa_config` that PEFT would pass by.

    :raises ConfigError: naming it
    """
    for key, value in values.items():
        built = vars(config).get(key)
        if isinstance(value, dict) and dataclasses.is_dataclass(built):
            known = [field.name for field in dataclasses.fields(built)]
            if unknown := sorted(set(value) - set(known)):
                raise ConfigError(
                    f"Config key '{key}.{unknown[0]}' is unknown. {key} takes {', '.join(known)}."
                )


def check_token_indices(config: Any, model: PreTrainedModel) -> None:
    """:raises ConfigError: trainable_token_indices names an id that is not a row of the vocabulary"""
    indices = getattr(config, "trainable_token_indices", None)
    if indices is None:
        return
    rows = model.get_input_embeddings().weight.shape[0]
    ids = [index for part in (indices.values() if isinstance(indices, dict) else [indices]) for index in part]
    wrong = next((index for index in ids if not isinstance(index, int) or not 0 <= index < rows), None)
    if not ids or wrong is not None:
        raise ConfigError(
            f"Config key 'trainable_token_indices' is {show(indices)}. Give ids of tokens, from 0 to {rows - 1}."
        )


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
