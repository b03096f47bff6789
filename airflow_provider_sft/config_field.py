"""The `config` of an operator: data, of which only the listed keys are templated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sft.contract.codec import Config, parse_config, read_config_file
from airflow_provider_sft.contract.errors import ConfigError, SFTError
from airflow_provider_sft.contract.names import ALLOW_REMOTE_CODE_ENV_VAR
from airflow_provider_sft.contract.secrets import find_secrets, find_url_secrets
from airflow_provider_sft.contract.validation import validate_config
from airflow_provider_sft.failures import failure_of_error

try:
    from airflow.providers.common.compat.sdk import mask_secret
except ImportError:  # an older common.compat, with Airflow 2
    from airflow.utils.log.secrets_masker import mask_secret  # type: ignore[import-not-found,no-redef]

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import Context

# The keys that hold paths: what differs from run to run.
PATH_KEYS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "training_data_path",
    "validation_data_path",
    "data_config_path",
    "output_dir",
    "logging_dir",
    "resume_from_checkpoint",
)
# Airflow masks a text wherever it occurs: not every short word that is a parameter of a URL.
_MIN_MASKED_CHARS = 6
_TEMPLATE_MARKS = ("{{", "{%", "{#")
# Airflow's Templater has this signature from 2.11 to 3.3; KubernetesPodOperator overrides the same method.
_Seen = set[int]


class ConfigField:
    """A mixin for operators, before their base class: it renders `self.config`.

    What arrives: a mapping, an XComArg, JSON text, a template that gives one of these, the path of a JSON file
    (relative to the DAG file), or a function of the context such as `forms.read_form`. What is left after rendering: a dict. Values that are no listed key's stay
    as they are: a trailing newline, `{{`, a string that looks like a number.
    """

    config: Any
    templated_config_keys: Sequence[str]
    extra_config_keys: Sequence[str]
    allow_remote_code: bool = False

    def check_config(self) -> Config:
        """The rendered config, checked and coerced by the schema: what the trainer gets.

        :raises PermanentFailure: it is wrong; the message names key and value
        """
        try:
            return validate_config(
                read_config_source(self.config),
                self.extra_config_keys,
                allow_remote_code=self.allow_remote_code or None,
            )
        except SFTError as error:
            raise failure_of_error(error) from None

    @property
    def leave_variable(self) -> dict[str, str]:
        """What tells the trainer that code which comes with a model may run."""
        return {ALLOW_REMOTE_CODE_ENV_VAR: "true"} if self.allow_remote_code else {}

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: jinja2.Environment,
        seen_oids: _Seen,
    ) -> None:
        if parent is self:
            template_fields = [field for field in template_fields if field != "config"]
            try:
                if self.config is not None:
                    config = _refuse_secrets(self._render_config(context, jinja_env, seen_oids))
                    _mask_in_airflow(config)
                    self.config = config
            except SFTError as error:
                raise failure_of_error(error) from None
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)  # type: ignore[misc]

    def _render_config(self, context: Context, jinja_env: jinja2.Environment, seen_oids: _Seen) -> Config:
        source = self.config
        if callable(source):
            return read_config_source(source(context=context, jinja_env=jinja_env))
        if isinstance(source, str) and source.lstrip().startswith(("{{", "{%")):
            return read_config_source(self.render_template(source, context, jinja_env, seen_oids))  # type: ignore[attr-defined]
        if _is_reference(source):
            return read_config_source(self.render_template(source, context, jinja_env, seen_oids))  # type: ignore[attr-defined]
        if id(source) in seen_oids:  # mapped over data that came from XCom: Airflow does not template that
            return read_config_source(source)
        config = read_config_source(source, jinja_env)
        render = _Renderer(self, context, jinja_env, seen_oids)
        return {
            key: render.template(value) if key in self.templated_config_keys else render.references(value)
            for key, value in config.items()
        }


def _refuse_secrets(config: Config) -> Config:
    """While rendering, because what is rendered is shown in the UI."""
    if found := find_secrets(config):
        raise ConfigError("\n".join(secret.sentence for secret in found))
    return config


def _mask_in_airflow(config: Config) -> None:
    """In Rendered Templates, and in whatever else Airflow prints of this task."""
    for secret in find_url_secrets(config):
        if len(secret) >= _MIN_MASKED_CHARS:
            mask_secret(secret)


def read_config_source(source: Any, jinja_env: jinja2.Environment | None = None) -> Config:
    """The config a mapping, JSON text or a file holds, nothing rendered.

    :param jinja_env: the DAG's: it knows the DAG's folder
    :raises ConfigError: it is none of these
    """
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        return parse_config(source)
    if isinstance(source, str | os.PathLike) and source:
        return _read_file(os.fspath(source), jinja_env)
    raise ConfigError(
        f"config is {source!r}. Give a dict, JSON text, or the path of a JSON file beside the DAG file."
    )


def _read_file(path: str, jinja_env: jinja2.Environment | None) -> Config:
    if Path(path).is_absolute() or jinja_env is None or jinja_env.loader is None:
        return read_config_file(Path(path))
    import jinja2

    try:
        text, _, _ = jinja_env.loader.get_source(jinja_env, path)
    except jinja2.TemplateNotFound as error:
        raise ConfigError(
            f"config {path!r} is neither JSON text nor a file beside the DAG file. Correct the path."
        ) from error
    return parse_config(text, source=path)


class _Renderer:
    """Airflow's rendering, for one operator and task instance."""

    def __init__(self, operator: Any, context: Context, jinja_env: jinja2.Environment, seen: _Seen) -> None:
        self._arguments = (context, jinja_env, seen)
        self._operator = operator

    def template(self, value: Any) -> Any:
        if isinstance(value, str) and not any(mark in value for mark in _TEMPLATE_MARKS):
            return value  # rendering would drop a trailing newline
        return _path_as_text(self._operator.render_template(value, *self._arguments))

    def references(self, value: Any) -> Any:
        """XComArgs anywhere in `value` become what they refer to; all else stays."""
        if isinstance(value, Mapping):
            return {key: self.references(member) for key, member in value.items()}
        if isinstance(value, list | tuple):
            return [self.references(member) for member in value]
        if _is_reference(value):
            return self._operator.render_template(value, *self._arguments)
        return _path_as_text(value)


def _is_reference(value: Any) -> bool:
    return hasattr(value, "resolve") and hasattr(value, "iter_references")


def _path_as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
