"""YAML that a user wrote: whatever is wrong with it is one sentence that quotes nothing of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, NotFoundError


def read_yaml_file(path: Path, key: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """
    :raises NotFoundError: it does not exist
    :raises AccessDeniedError: it cannot be read
    :raises ConfigError: not UTF-8, or not YAML
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise NotFoundError(f"{key} {str(path)!r} does not exist. Mount it, or correct the path.") from error
    except PermissionError as error:
        raise AccessDeniedError(f"{key} {str(path)!r} cannot be read. Give it read permission.") from error
    except (UnicodeDecodeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"byte {error.start + 1} is not UTF-8"
        raise ConfigError(
            f"{key} {str(path)!r} cannot be read ({reason}). Name a UTF-8 text file."
        ) from error
    return parse_yaml(text, f"{key} {str(path)!r}", loader)


def parse_yaml(text: str, source: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """
    :param source: named in the message
    :raises ConfigError: not YAML, nested too deeply, or a key or value that YAML has and Python has not
    """
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{source} is not YAML: {error.problem or 'it cannot be read'}{at}. Correct it."
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply. Write it flatter.") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as error:
        # A date that is none, a list as a key: PyYAML raises what Python raises.
        raise ConfigError(
            f"{source} holds a key or value that cannot be read ({type(error).__name__}). Correct it."
        ) from error
