"""A trigger form in sections, made from the config's schema, and its way back into a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import Param

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.schema import JSONSchema, config_keys

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

FORM_KEYS = (
    "model_name_or_path",
    "training_data_path",
    "validation_data_path",
    "output_dir",
    "dataset_text_field",
    "response_template",
    "peft_method",
    "r",
    "lora_alpha",
    "target_modules",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "gradient_checkpointing",
    "packing",
    "save_total_limit",
    "lora_post_process_for_vllm",
)
MORE_KEY = "more"
RUN_ID_MARK = "{run_id}"
_MORE_TEXT = "Any other config key, as one JSON object; `sft-config schema` lists them."
_KINDS = ("integer", "number", "boolean", "string", "array", "object")


def make_form(defaults: Mapping[str, Any] | None = None, keys: Sequence[str] = FORM_KEYS) -> dict[str, Param]:
    """`params` for a DAG: a field a key, and one for any other.

    :param defaults: what the fields start with, where it is not the config's own default
    """
    defaults = defaults or {}
    fields = {key: _make_field(key, defaults.get(key)) for key in dict.fromkeys([*keys, *defaults])}
    more = Param({}, type=["object", "null"], title="More keys", description=_MORE_TEXT, section="More")
    return {**fields, MORE_KEY: more}


def read_form(context: Context, jinja_env: Any = None) -> Config:  # noqa: ARG001  # as Airflow calls template fields
    """`config=read_form`: what was filled in. A field left at the config's own default is left out.

    `{run_id}` in output_dir becomes the DAG run's, since each run needs a directory of its own. Nothing is templated:
    whoever may fill in the form may not read Airflow's variables and connections by it.

    :raises ConfigError: `more` names a key that has a field
    """
    params = {key: value for key, value in context["params"].items() if value not in (None, "")}
    more = params.pop(MORE_KEY, {})
    config = {
        key: value
        for key, value in params.items()
        if key in config_keys() and value != config_keys()[key].get("default")
    }
    if twice := sorted(config.keys() & more.keys()):
        raise ConfigError(f"{', '.join(twice)} stands in a field and in {MORE_KEY!r}. Keep one of them.")
    config |= more
    if "output_dir" in config:
        config["output_dir"] = str(config["output_dir"]).replace(RUN_ID_MARK, context["run_id"])
    return config


def _make_field(key: str, default: Any) -> Param:
    """:raises KeyError: the schema does not know the key"""
    schema = config_keys()[key]
    start = schema.get("default") if default is None else default
    form = _choices(schema) if "enum" in schema else {"type": [*_kinds(schema), "null"]}
    return Param(
        start,
        title=key,
        description=schema.get("description", ""),
        section=schema.get("x-group", "Config"),
        **form,
    )


def _choices(schema: JSONSchema) -> dict[str, Any]:
    return {"type": ["string", "null"], "enum": list(schema["enum"])}


def _kinds(schema: JSONSchema) -> list[str]:
    """One kind a field: the form shows a list as lines, and a number as a number."""
    kinds = schema.get("type", "string")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return [next((kind for kind in ("array", *_KINDS) if kind in kinds), "string")]
