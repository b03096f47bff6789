"""Texts with columns in them, `{{column}}`, that a config brings. Untrusted: they run in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.meta import find_undeclared_variables

from airflow_provider_sft.contract.errors import ConfigError, DataError
from trainer.data.rows import RowChunk
from trainer.data.sandbox import LimitedEnvironment, LimitedTemplate
from trainer.data.time_limit import LimitError


class RowTemplate:
    """Jinja, taken as written; `element` is the whole row.

    :param key: the config key it comes from
    :param constants: what else it may name, such as `eos_token`
    :raises ConfigError: no Jinja, or it names a column that the rows lack
    """

    def __init__(self, key: str, source: str, columns: Sequence[str], constants: Mapping[str, Any]) -> None:
        environment = LimitedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        self._key, self._constants = key, dict(constants)
        try:
            self._template = LimitedTemplate(environment, source)
            names = find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"{key} is no Jinja template: line {error.lineno}: {error.message}. Correct it."
            ) from error
        except LimitError as error:
            raise ConfigError(f"{key} is stopped: {error}. Simplify it.") from error
        unknown = sorted(names - {"element", *columns, *constants, *environment.globals})
        if unknown:
            raise ConfigError(
                f"{key} names {unknown[0]!r}, and the rows have {', '.join(map(repr, columns))}. Name one of them."
            )

    def fill_all(self, chunk: RowChunk) -> list[str]:
        return [self.fill(chunk, index) for index in range(len(chunk.rows))]

    def fill(self, chunk: RowChunk, index: int) -> str:
        """
        :raises DataError: this row lacks a column, or nothing is rendered
        :raises ConfigError: the sandbox stops the template
        """
        row = chunk.rows[index]
        try:
            text = self._template.render(**{**self._constants, **row, "element": row})
        except LimitError as error:
            raise ConfigError(
                f"{chunk.where(index)}: {self._key} is stopped: {error}. Simplify it."
            ) from error
        except jinja2.exceptions.SecurityError as error:
            raise ConfigError(
                f"{self._key} does what the sandbox forbids ({error}). Take that out of it."
            ) from error
        except Exception as error:  # whatever foreign code raises
            raise DataError(
                f"{chunk.where(index)}: {self._key} fails ({error}). Correct the row, or the template."
            ) from error
        if not text.strip():
            raise DataError(
                f"{chunk.where(index)}: {self._key} renders nothing. Correct the template, or take the row out."
            )
        return text
