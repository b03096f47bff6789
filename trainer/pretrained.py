"""The one way to a model or tokenizer on disk or on the Hub: whole, as its architecture has it, or refused."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers.modeling_utils as transformers_loading
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Mxfp4Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from airflow_provider_sft.contract.errors import ConfigError, InternalError, NotFoundError, SFTError
from trainer.failures import classify
from trainer.loading_report import describe_flaws

_MAX_REASON_CHARS = 400
_UNKNOWN_TYPE = re.compile(r"has model type `(.*?)` but Transformers does not recognize")
# How transformers and its quantisers refuse an argument: an attention, a package that is missing.
_OF_ARGUMENTS = (ValueError, TypeError, ImportError, AttributeError, StrictDataclassError)

_ORIGIN = ("trust_remote_code", "revision", "cache_dir", "subfolder", "token", "gguf_file")


def load_tokenizer_files(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """:raises NotFoundError: its files are damaged or not there
    :raises ConfigError: a package that it needs is not installed
    """
    tokenizer: PreTrainedTokenizerBase
    with _translate(name, lambda error: _refuse_tokenizer(name, error)):
        tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
    return tokenizer


def load_model_config(name: str, **kwargs: Any) -> Any:
    """:raises NotFoundError: config.json is damaged
    :raises ConfigError: it is of a model that the installed transformers does not know
    """
    with _translate(name, lambda error: _refuse_config(name, error)):
        return AutoConfig.from_pretrained(name, **kwargs)


def load_whole_model(name: str, **kwargs: Any) -> PreTrainedModel:
    """A causal language model in which every weight comes from a file.

    :param kwargs: of transformers' `from_pretrained`
    :raises NotFoundError: a weight is missing, left over or of another shape, or a file is damaged
    :raises ConfigError: an argument does not fit this model
    """
    config = load_model_config(name, **{key: kwargs[key] for key in _ORIGIN if key in kwargs})
    _check_kind(name, config)
    _check_quantisation(name, config, kwargs.get("quantization_config"))
    # Mismatched shapes are judged below, with the missing ones, and named.
    kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with _translate(name, lambda error: _refuse_model(name, config, error)), _keeping_report() as reports:
        model, report = AutoModelForCausalLM.from_pretrained(name, **kwargs)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise NotFoundError(
            f"The model {name!r} is an adapter. Merge it into its base, and name the merged model."
        )
    is_part = model.config.model_type != config.model_type
    if flaws := describe_flaws(report, reports, model, is_part=is_part):
        raise NotFoundError(
            f"The weights in {name!r} are not those of its config.json ({type(model).__name__}): {flaws}. "
            "Copy the model again, or correct its config.json or model_init_kwargs."
        )
    return model


def _check_kind(name: str, config: Any) -> None:
    kind = config.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not getattr(config, "auto_map", None):
        raise ConfigError(
            f"The model {name!r} is of type {kind!r}, for which transformers has no causal language model. "
            "Name a model that generates text."
        )


def _check_quantisation(name: str, config: Any, asked: Any) -> None:
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    if isinstance(asked, Mxfp4Config) and method != "mxfp4":
        raise ConfigError(
            f"Config key 'quantization_method' is 'mxfp4' but the weights of the model {name!r} are not stored in MXFP4. "
            "Name a model that is, or drop the key."
        )


@contextlib.contextmanager
def _keeping_report() -> Iterator[list[Any]]:
    """Take transformers' report from it where it would log it, and end without names after a failed conversion."""
    reports: list[Any] = []
    logs = transformers_loading.log_state_dict_report

    def keep(*_args: Any, loading_info: Any, **_kwargs: Any) -> None:
        reports.append(loading_info)

    transformers_loading.log_state_dict_report = keep
    try:
        yield reports
    finally:
        transformers_loading.log_state_dict_report = logs


@contextlib.contextmanager
def _translate(name: str, refuse: Callable[[Exception], SFTError]) -> Iterator[None]:
    """What the system, the Hub or the accelerator says keeps its class; the rest is of the files or the arguments."""
    try:
        yield
    except Exception as error:
        if not isinstance(classify(error, model=name), InternalError):
            raise
        raise refuse(error) from error


def _refuse_tokenizer(name: str, error: Exception) -> SFTError:
    if isinstance(error, ImportError):
        return ConfigError(f"The tokenizer {name!r} cannot be loaded: {_reason(error)}")
    return NotFoundError(
        f"The tokenizer {name!r} cannot be loaded from its files (tokenizer.json, tokenizer_config.json): "
        f"{_reason(error)}. Copy them again."
    )


def _refuse_config(name: str, error: Exception) -> SFTError:
    if found := _UNKNOWN_TYPE.search(str(error)):
        return ConfigError(
            f"The model {name!r} is of type {found[1]!r}, which transformers {transformers_version} does not know. "
            "Correct its config.json, or use an image with a newer release."
        )
    if isinstance(error, ImportError):
        return ConfigError(f"The model {name!r} cannot be loaded: {_reason(error)}")
    return NotFoundError(f"config.json of the model {name!r} cannot be used: {_reason(error)}")


def _refuse_model(name: str, config: Any, error: Exception) -> SFTError:
    """The files are at fault unless what they describe can be built without the config's arguments."""
    if isinstance(error, _OF_ARGUMENTS) and _can_be_built(config):
        return ConfigError(f"The model {name!r} cannot be loaded: {_reason(error)}")
    return NotFoundError(f"The model {name!r} cannot be loaded from its files: {_reason(error)}")


def _can_be_built(config: Any) -> bool:
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ImportError:
        return True
    except Exception:  # noqa: BLE001  # whatever a damaged config.json leads to
        return bool(getattr(config, "auto_map", None))
    return True


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:_MAX_REASON_CHARS].rstrip(".")
