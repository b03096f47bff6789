"""Keys and values that need an optional dependency, told before a training asks for it in vain."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from airflow_provider_sft.contract.schema import JSONSchema, config_keys
from airflow_provider_sft.contract.wording import show

_MODULES = {
    "aim": "aim",
    "bitsandbytes": "bitsandbytes",
    "clearml": "clearml",
    "flash-attn": "flash_attn",
    "liger": "liger_kernel",
    "mlflow": "mlflow",
    "tensorboard": "tensorboard",
}


def find_missing_extras(
    values: Mapping[str, Any], is_installed: Callable[[str], bool] | None = None
) -> list[str]:
    """A sentence for each value whose package this environment lacks. Imports none of them.

    :param values: under present names (`Settings.values`)
    :param is_installed: of a module's name; None looks for it here
    """
    is_installed = is_installed or _is_installed
    return [
        f"Config key {key!r} is {show(value)}, which needs the module {_MODULES[extra]!r}, and it is not installed. "
        f"Install it with pip install 'airflow-provider-sft[{extra}]', or change the key."
        for key, value in values.items()
        for extra in _extras_of(value, config_keys().get(key, {}))
        if not is_installed(_MODULES[extra])
    ]


def _extras_of(value: Any, prop: JSONSchema) -> Iterator[str]:
    if "x-extra" in prop and value:
        yield prop["x-extra"]
    by_value: Mapping[str, str] = prop.get("x-extra-values", {})
    for member in value if isinstance(value, list) else [value]:
        if isinstance(member, str) and member in by_value:
            yield by_value[member]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
