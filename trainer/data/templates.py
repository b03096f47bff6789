"""Templates that a config brings: `{{column}}` texts and chat templates. Untrusted: they run in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from airflow_provider_sft.contract.errors import ConfigError, DataError
from trainer.data.rows import RowChunk


class RowTemplate:
    """A text with columns in it, `{{column}}`; Jinja, as written.

    :param constants: what else the text may name, such as `eos_token`
    :raises ConfigError: no Jinja, or it names a column that the rows lack
    """

    def __init__(self, source: str, columns: Sequence[str], constants: Mapping[str, Any]) -> None:
        environment = ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        try:
            self._template = environment.from_string(source)
            names = find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"data_formatter_template is no Jinja template: line {error.lineno}: {error.message}. Correct it."
            ) from error
        self._constants = dict(constants)
        unknown = sorted(names - {"element", *columns, *constants})
        if unknown:
            raise ConfigError(
                f"data_formatter_template names {unknown[0]!r}, and the rows have {', '.join(map(repr, columns))}. Name one of them."
            )

    def fill(self, chunk: RowChunk, index: int) -> str:
        """
        :raises DataError: this row lacks a column
        """
        row = chunk.rows[index]
        try:
            return self._template.render({**self._constants, **row, "element": row})
        except jinja2.exceptions.SecurityError as error:
            raise ConfigError(
                f"data_formatter_template does what the sandbox forbids ({error}). Take that out of it."
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{chunk.where(index)}: data_formatter_template fails ({error}). Give the row that column."
            ) from error
