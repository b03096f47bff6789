"""Which weights are trained: all of them, or an adapter's (LoRA, aLoRA, prompt tuning), on a quantised base if asked."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import BitsAndBytesConfig, Mxfp4Config, PreTrainedModel, PreTrainedTokenizerBase

from airflow_provider_sft.contract.errors import ConfigError, DataError
from airflow_provider_sft.contract.settings import Settings
from trainer.activation import read_invocation
from trainer.library_warnings import telling_warnings
from trainer.misfit import (
    check_saved_modules,
    check_sub_configs,
    check_token_indices,
    choose_targets,
    refusing_misfits,
    spare_routers,
)
from trainer.new_tokens import read_earlier_adapter, tie_adapters, train_new_tokens

_PROMPT_KEYS = ("prompt_tuning_init", "num_virtual_tokens", "prompt_tuning_init_text")


def apply_peft(
    model: PreTrainedModel,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    new_rows: int,
    new_tokens: Sequence[int] = (),
    resume_from: str | None = None,
    say: Callable[[str], None],
) -> Any:
    """The model as it is trained.

    :param new_rows: by how much the vocabulary grew; the adapter then carries the embeddings
    :param new_tokens: ids that the base was never trained on
    :param resume_from: the checkpoint, whose adapter this one must fit
    :param say: what the config left open and was chosen here, a sentence
    :raises ConfigError: the adapter does not fit the model
    :raises DataError: nothing would be trained
    """
    if getattr(model, "is_quantized", False):
        checkpointing = bool(settings.values.get("gradient_checkpointing"))
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    with refusing_misfits(model, settings), telling_warnings(say):
        config = build_peft_config(settings, tokenizer)
    if config is None:
        return _check_trainable(model, "peft_method is not set and every weight of the model is frozen")
    check_sub_configs(config, settings.section("peft"))
    earlier = read_earlier_adapter(resume_from)
    with refusing_misfits(model, settings):
        if isinstance(config, LoraConfig):
            _choose_places(config, model, say)
            tie_adapters(config, model, settings, say, earlier=earlier)
        train_new_tokens(config, model, new_tokens, settings.values, say, earlier=earlier)
    check_saved_modules(model, settings.values)
    check_token_indices(config, model)
    with refusing_misfits(model, settings), telling_warnings(say):
        tuned = get_peft_model(model, config)
    if new_rows:
        # PEFT's own guess leaves grown embeddings out when it does not find the base model's config.
        tuned.save_pretrained = functools.partial(tuned.save_pretrained, save_embedding_layers=True)
    return _check_trainable(tuned, "the adapter has no weight in this model")


def _choose_places(config: LoraConfig, model: PreTrainedModel, say: Callable[[str], None]) -> None:
    if not config.target_modules and not config.target_parameters:
        config.target_modules = choose_targets(model, say)
    spare_routers(config, model, say)


def _check_trainable(model: Any, reason: str) -> Any:
    if not any(weight.requires_grad and weight.numel() for weight in model.parameters()):
        raise DataError(
            f"Nothing would be trained: {reason}. Set peft_method to 'lora', or use a model whose weights can be trained."
        )
    return model


def build_peft_config(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> PeftConfig | None:
    """None for full fine-tuning."""
    options = copy.deepcopy(settings.section("peft"))  # PEFT adds to lists that it is given
    method = options.pop("peft_method", None)
    if method in ("lora", "alora"):
        return _build_lora(options, read_invocation(settings, tokenizer))
    if method == "pt":
        return _build_prompt_tuning(settings)
    return None


def _build_lora(options: dict[str, Any], invocation: list[int] | None) -> LoraConfig:
    for name in (*_PROMPT_KEYS, "alora_invocation_string"):
        options.pop(name, None)
    options["alora_invocation_tokens"] = invocation
    if options.get("target_modules") in (["all-linear"], "all-linear"):
        options["target_modules"] = "all-linear"
    return LoraConfig(task_type=TaskType.CAUSAL_LM, **options)


def _build_prompt_tuning(settings: Settings) -> PromptTuningConfig:
    values = settings.values
    return PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        tokenizer_name_or_path=values.get("tokenizer_name_or_path") or values["model_name_or_path"],
        **{name: values[name] for name in _PROMPT_KEYS},
    )


def build_quantization(settings: Settings) -> BitsAndBytesConfig | Mxfp4Config | None:
    """How the base is loaded: QLoRA's 4 bits, or weights stored in MXFP4. A GPTQ base says so itself.

    :raises ConfigError: bitsandbytes or a GPU is missing
    """
    options = settings.section("quantization")
    if options.get("quantization_method") == "mxfp4":
        return Mxfp4Config(dequantize=options["dequantize"])
    kind = options.get("bnb_qlora")
    if not kind:
        return None
    quant_type, _, _ = (kind if isinstance(kind, list) else [kind])[0].partition(",")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"Config key 'bnb_qlora' is {kind!r}, which needs a GPU. Request one, or drop the key."
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Config key 'bnb_qlora' needs bitsandbytes. Install it: pip install 'airflow-provider-sft[bitsandbytes]'."
        ) from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
