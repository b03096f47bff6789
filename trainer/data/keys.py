"""The config's keys that say what a row is and what of it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import Settings
from trainer.data.plan import read_text_file
from trainer.data.roots import check_allowed


@dataclass(frozen=True)
class DataKeys:
    """
    :param loss_on_assistant: assistant_only_loss was asked for; it is the default of conversations anyway
    :param loss_on_user: assistant_only_loss was turned off
    :param loss_on_completion: completion_only_loss was asked for; it is the default of pairs anyway
    :param loss_on_prompt: completion_only_loss was turned off
    """

    text_field: str | None = None
    conversation_field: str | None = None
    response_template: str | None = None
    instruction_template: str | None = None
    formatter_template: str | None = None
    loss_on_assistant: bool = False
    loss_on_user: bool = False
    loss_on_completion: bool = False
    loss_on_prompt: bool = False

    def text_keys(self) -> dict[str, str | None]:
        """By their names in the config."""
        return {
            "response_template": self.response_template,
            "instruction_template": self.instruction_template,
            "data_formatter_template": self.formatter_template,
            "dataset_text_field": self.text_field,
            "dataset_conversation_field": self.conversation_field,
        }

    @property
    def text_column(self) -> str | None:
        """The column that is the text, where one is."""
        return None if self.formatter_template else self.text_field or "text"

    def with_text_field(self, field: str) -> DataKeys:
        return replace(self, text_field=field)

    def without_templates(self) -> DataKeys:
        return replace(self, response_template=None, instruction_template=None)


def read_keys(settings: Settings) -> DataKeys:
    values = settings.values
    said = {
        key: values.get(key)
        for key in ("assistant_only_loss", "completion_only_loss")
        if key in settings.given
    }
    return DataKeys(
        text_field=values.get("dataset_text_field"),
        conversation_field=values.get("dataset_conversation_field"),
        response_template=values.get("response_template"),
        instruction_template=values.get("instruction_template"),
        formatter_template=values.get("data_formatter_template"),
        loss_on_assistant=said.get("assistant_only_loss") is True,
        loss_on_user=said.get("assistant_only_loss") is False,
        loss_on_completion=said.get("completion_only_loss") is True,
        loss_on_prompt=said.get("completion_only_loss") is False,
    )


def choose_chat_template(settings: Settings, from_plan: str | None, environ: Mapping[str, str]) -> str | None:
    """The chat template that replaces the tokenizer's, as written; None keeps it.

    :param from_plan: the data_config's
    :raises ConfigError: two of them
    """
    text, path = settings.values.get("chat_template"), settings.values.get("chat_template_path")
    named = {"chat_template": text, "chat_template_path": path, "the data_config's dataprocessor": from_plan}
    said = [name for name, value in named.items() if value]
    if len(said) > 1:
        raise ConfigError(f"A chat template stands in {' and in '.join(said)}. Keep one.")
    if not path:
        return text or from_plan
    check_allowed("chat_template_path", Path(path), environ)
    return _read_template(Path(path))


def _read_template(path: Path) -> str:
    """From a text file, or out of a tokenizer's directory as trl has it."""
    if not path.is_dir():
        return read_text_file(path, "chat_template_path")
    from trainer.pretrained import load_tokenizer_files

    template: Any = load_tokenizer_files(str(path)).chat_template
    if not isinstance(template, str):
        raise ConfigError(
            f"chat_template_path {str(path)!r} holds a tokenizer without a chat template. Name another."
        )
    return template
