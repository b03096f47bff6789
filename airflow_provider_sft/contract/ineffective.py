"""Keys that were written and change nothing: said once, in log and result; the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.rules import eval_strategy_of, tuning_method_of
from airflow_provider_sft.contract.schema import config_keys

_ADAPTER_METHODS = ("lora", "alora", "pt")
_EVERY_TECHNIQUES = ("peft_method", "revision")
_PROMPT_KEYS = ("prompt_tuning_init", "num_virtual_tokens", "prompt_tuning_init_text")
# What these are whatever a config says.
_FIXED = {
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,
    "remove_unused_columns": False,
}
# The peer's plugins.
_WITHOUT_COUNTERPART = {
    "multipack": "batches go without padding, which is what it was for.",
    "fast_kernels": "set use_liger_kernel for fused kernels on GPUs.",
    "fused_lora": "LoRA runs on PEFT's own layers.",
    "fast_moe": "experts run on transformers' own layers.",
}


def find_ineffective(config: Config) -> list[str]:
    """A sentence each.

    :param config: under present names, each value fit for its key
    """
    return [sentence for rule in _RULES for sentence in rule(config)]


def _idle_peft_keys(config: Config) -> Iterator[str]:
    if tuning_method_of(config) in _ADAPTER_METHODS:
        return
    keys = config_keys()
    idle = [key for key in config if keys[key].get("x-section") == "peft" and key not in _EVERY_TECHNIQUES]
    if idle:
        verb = "has" if len(idle) == 1 else "have"
        yield (
            f"{', '.join(idle)} {verb} no effect: peft_method is 'none', so all weights are trained. "
            f"Set peft_method to 'lora' for an adapter."
        )


def _idle_technique_keys(config: Config) -> Iterator[str]:
    """Keys of another technique than the one that is asked for."""
    method, keys = tuning_method_of(config), config_keys()
    if method not in _ADAPTER_METHODS:
        return
    idle = [
        key for key in config if keys[key].get("x-section") == "peft" and method not in _techniques_of(key)
    ]
    if idle:
        verb = "has" if len(idle) == 1 else "have"
        yield f"{', '.join(idle)} {verb} no effect: peft_method is {method!r}."


def _techniques_of(key: str) -> tuple[str, ...]:
    if key in _EVERY_TECHNIQUES:
        return _ADAPTER_METHODS
    if key in _PROMPT_KEYS:
        return ("pt",)
    return ("alora",) if key == "alora_invocation_string" else ("lora", "alora")


def _fixed_keys(config: Config) -> Iterator[str]:
    for key, value in _FIXED.items():
        if key in config and config[key] != value:
            yield f"{key} has no effect: the trainer prepares rows, tells progress and watches the loss itself."


def _idle_steps(config: Config) -> Iterator[str]:
    strategies = {
        "logging": config.get("logging_strategy", "epoch"),
        "save": config.get("save_strategy", "epoch"),
        "eval": eval_strategy_of(config),
    }
    for what, strategy in strategies.items():
        if config.get(f"{what}_steps") is not None and strategy != "steps":
            yield (
                f"{what}_steps has no effect: {what}_strategy is {strategy!r}. "
                f"Set {what}_strategy to 'steps' to use it."
            )


def _idle_validation_data(config: Config) -> Iterator[str]:
    if config.get("validation_data_path") and config.get("eval_strategy") == "no":
        yield "validation_data_path is not evaluated on: eval_strategy is 'no'. Set it to 'epoch' or 'steps' to evaluate."


def _idle_speed_keys(config: Config) -> Iterator[str]:
    """The peer's plugins that change no number and have no counterpart: the run goes on without."""
    for key, instead in _WITHOUT_COUNTERPART.items():
        if config.get(key):
            yield f"{key} has no counterpart here and changes no number: {instead}"


def _idle_loss_sum(config: Config) -> Iterator[str]:
    if config.get("enable_reduce_loss_sum") and tuning_method_of(config) != "none":
        yield "enable_reduce_loss_sum has no effect on an adapter, as in fms-hf-tuning."


def _unknown_scanner(config: Config) -> Iterator[str]:
    if "hf_resource_scanner" in (config.get("trackers") or []):
        yield "The tracker 'hf_resource_scanner' has no counterpart here and is ignored."
    elif config.get("scanner_output_filename"):
        yield "scanner_output_filename has no effect: 'hf_resource_scanner' has no counterpart here."


_RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    _idle_peft_keys,
    _idle_technique_keys,
    _fixed_keys,
    _idle_steps,
    _idle_validation_data,
    _idle_speed_keys,
    _idle_loss_sum,
    _unknown_scanner,
)
