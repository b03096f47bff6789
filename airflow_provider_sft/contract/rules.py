"""Contradictions between keys: a rule each, with its own sentence. Any of them stops a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.json_values import read_object_text
from airflow_provider_sft.contract.learning_rules import find_idle_training
from airflow_provider_sft.contract.names import ALLOW_REMOTE_CODE_ENV_VAR
from airflow_provider_sft.contract.paths import find_path_mistakes
from airflow_provider_sft.contract.schema import config_keys
from airflow_provider_sft.contract.trackers import find_tracker_contradictions
from airflow_provider_sft.contract.wording import describe, show

_REMOTE_CODE_KEY = "trust_remote_code"
_MAX_DEPTH = 16


def find_contradictions(config: Config, *, allow_remote_code: bool) -> list[str]:
    """A sentence a mistake.

    :param config: under present names, each value fit for its key
    :param allow_remote_code: the leave of whoever runs the pod; a config cannot give it
    """
    mistakes = [sentence for rule in _RULES for sentence in rule(config)] + find_idle_training(config)
    return mistakes if allow_remote_code else [*mistakes, *_remote_code(config)]


def eval_strategy_of(config: Config) -> str:
    """When the run evaluates. Unset, it follows the data: each epoch when there is something to evaluate on."""
    unset = "epoch" if config.get("validation_data_path") else "no"
    return str(config.get("eval_strategy", unset))


def tuning_method_of(config: Mapping[str, Any]) -> str:
    """`none`, `lora`, `alora` or `pt`"""
    method = str(config.get("peft_method") or "none")
    return "alora" if method == "lora" and config.get("alora_invocation_tokens") else method


def _no_training_data(config: Config) -> Iterator[str]:
    if not config.get("training_data_path") and not config.get("data_config_path"):
        yield (
            "Config key 'training_data_path' is missing. Add it, for example "
            '"training_data_path": "/data/input/train.jsonl", or describe the data in a data_config_path.'
        )


def _two_sources(config: Config) -> Iterator[str]:
    if not config.get("data_config_path"):
        return
    for key in ("training_data_path", "validation_data_path"):
        if config.get(key):
            yield (
                f"Config keys 'data_config_path' ({show(config['data_config_path'])}) and {key!r} "
                f"({show(config[key])}) exclude each other. Name the file in the data config, or drop 'data_config_path'."
            )


def _data_elsewhere(config: Config) -> Iterator[str]:
    for key in ("training_data_path", "validation_data_path", "data_config_path"):
        if "://" in str(config.get(key)):
            yield f"Config key {key!r} is {show(config[key])}, a URL. Download it to a volume and give its path."
    suffix = PurePosixPath(str(config.get("data_config_path") or "x.yaml")).suffix
    if suffix not in (".yaml", ".yml", ".json"):
        yield (
            f"Config key 'data_config_path' is {show(config['data_config_path'])}, which ends in {suffix!r}. "
            f"Expected .yaml, .yml or .json."
        )


def _evaluation_without_data(config: Config) -> Iterator[str]:
    if config.get("validation_data_path") or config.get("data_config_path"):
        return
    strategy = config.get("eval_strategy", "no")
    if strategy != "no":
        yield (
            f"Config key 'eval_strategy' is {strategy!r} but there is nothing to evaluate on. "
            f"Add validation_data_path, or set eval_strategy to 'no'."
        )


def _best_without_evaluation(config: Config) -> Iterator[str]:
    if eval_strategy_of(config) != "no":
        return
    if config.get("load_best_model_at_end"):
        yield (
            "Config key 'load_best_model_at_end' is true but eval_strategy is 'no', so no model is the best. "
            "Set eval_strategy to what save_strategy is, or drop load_best_model_at_end."
        )
    if config.get("save_strategy") == "best":
        yield (
            "Config key 'save_strategy' is 'best' but eval_strategy is 'no', so no model is the best. "
            "Set eval_strategy to 'epoch' or 'steps', or save_strategy to 'epoch'."
        )


def _best_of_unequal_strategies(config: Config) -> Iterator[str]:
    evaluate, save = eval_strategy_of(config), config.get("save_strategy", "epoch")
    if config.get("load_best_model_at_end") and evaluate not in ("no", save) and save != "best":
        yield (
            f"Config key 'load_best_model_at_end' needs save_strategy ({save!r}) and eval_strategy ({evaluate!r}) "
            f"to be the same. Set both to {evaluate!r}."
        )


def _plateau_without_evaluation(config: Config) -> Iterator[str]:
    scheduler = config.get("lr_scheduler_type")
    if scheduler in ("reduce_lr_on_plateau", "greedy") and eval_strategy_of(config) == "no":
        yield (
            f"Config key 'lr_scheduler_type' is {scheduler!r}, which follows the evaluation loss, but nothing is evaluated. "
            f"Add validation_data_path, or choose another schedule."
        )


def _text_twice(config: Config) -> Iterator[str]:
    if config.get("dataset_text_field") and config.get("data_formatter_template"):
        yield (
            f"Config keys 'dataset_text_field' ({show(config['dataset_text_field'])}) and 'data_formatter_template' "
            f"({show(config['data_formatter_template'])}) exclude each other. Keep one of them."
        )


def _template_without_text(config: Config) -> Iterator[str]:
    texts = (
        "dataset_text_field",
        "data_formatter_template",
        "instruction_template",
        "dataset_conversation_field",
        "data_config_path",
    )
    if config.get("response_template") and not any(config.get(key) for key in texts):
        yield (
            f"Config key 'response_template' is {show(config['response_template'])} but no text is named to look in. "
            f"Add dataset_text_field or data_formatter_template, or instruction_template for chat data."
        )


def _half_a_chat(config: Config) -> Iterator[str]:
    if config.get("instruction_template") and not config.get("response_template"):
        yield (
            f"Config key 'instruction_template' is {show(config['instruction_template'])} but response_template is "
            f"missing. Add it: it says where an assistant turn starts."
        )


def _images(config: Config) -> Iterator[str]:
    if config.get("dataset_image_field"):
        yield (
            f"Config key 'dataset_image_field' is {show(config['dataset_image_field'])}, and models are tuned on text "
            f"only. Drop the key, and name a model and a data set of text."
        )


def _two_chat_templates(config: Config) -> Iterator[str]:
    if config.get("chat_template") and config.get("chat_template_path"):
        yield "Config keys 'chat_template' and 'chat_template_path' exclude each other. Keep one of them."


def _alora_without_invocation(config: Config) -> Iterator[str]:
    if config.get("peft_method") != "alora":
        return
    if not config.get("alora_invocation_string") and not config.get("alora_invocation_tokens"):
        yield (
            "Config key 'alora_invocation_string' is missing, and peft_method is 'alora'. "
            "Add the text that activates the adapter; every row must hold it."
        )


def _prompt_without_text(config: Config) -> Iterator[str]:
    if config.get("peft_method") != "pt" or config.get("prompt_tuning_init", "TEXT") != "TEXT":
        return
    if not config.get("prompt_tuning_init_text", "default"):
        yield (
            f"Config key 'prompt_tuning_init_text' is {show(config['prompt_tuning_init_text'])}, and prompt_tuning_init "
            f"is 'TEXT'. Give a text, or set prompt_tuning_init to 'RANDOM'."
        )


def _quantised_without_adapter(config: Config) -> Iterator[str]:
    if tuning_method_of(config) in ("lora", "alora"):
        return
    for key in ("bnb_qlora", "auto_gptq"):
        if config.get(key):
            yield (
                f"Config key {key!r} is {show(config[key])} but peft_method is {tuning_method_of(config)!r}: a quantised base is "
                f"frozen. Set peft_method to 'lora', or drop {key!r}."
            )


def _two_precisions(config: Config) -> Iterator[str]:
    if config.get("bf16") and config.get("fp16"):
        yield "Config keys 'bf16' and 'fp16' are both true. Keep one of them."


def _broken_object_text(config: Config) -> Iterator[str]:
    for key, value in config.items():
        takes_object = "object" in describe(config_keys()[key]) if isinstance(value, str) else False
        if takes_object and value.lstrip().startswith("{") and read_object_text(value) is value:
            yield f"Config key {key!r} is {show(value)}, which is no JSON. Give an object."


def _summed_loss(config: Config) -> Iterator[str]:
    if not config.get("enable_reduce_loss_sum") or tuning_method_of(config) != "none":
        return
    if config.get("label_smoothing_factor") or config.get("loss_type", "nll") != "nll":
        yield (
            "Config key 'enable_reduce_loss_sum' is true, and a summed loss has neither label_smoothing_factor nor another "
            "loss_type than 'nll'. Drop them, or 'enable_reduce_loss_sum'."
        )


def _remote_code(config: Config) -> Iterator[str]:
    for path in _trusting_paths(config, "", 0):
        yield (
            f"Config key {path!r} is true: Python code that comes with the model would run in the pod. If you trust it, "
            f"set allow_remote_code=True on the operator ({ALLOW_REMOTE_CODE_ENV_VAR}=true in the trainer's environment); "
            f"else drop the key."
        )


def _trusting_paths(value: Any, path: str, depth: int) -> Iterator[str]:
    value = read_object_text(value)
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        return
    for name, member in value.items():
        inner = f"{path}.{name}" if path else str(name)
        if name == _REMOTE_CODE_KEY and member not in (False, None):
            yield inner
        else:
            yield from _trusting_paths(member, inner, depth + 1)


_Rule = Callable[[Config], Iterator[str]]
_RULES: tuple[_Rule, ...] = (
    _no_training_data,
    _two_sources,
    _evaluation_without_data,
    _best_without_evaluation,
    _best_of_unequal_strategies,
    _plateau_without_evaluation,
    _text_twice,
    _template_without_text,
    _half_a_chat,
    _images,
    _two_chat_templates,
    _alora_without_invocation,
    _prompt_without_text,
    _quantised_without_adapter,
    _two_precisions,
    _broken_object_text,
    _summed_loss,
    find_path_mistakes,
    find_tracker_contradictions,
    _data_elsewhere,
)
