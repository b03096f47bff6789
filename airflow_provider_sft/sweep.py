"""Several configs from one, and the best of their results."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.outcome import Result

log = logging.getLogger(__name__)


def sweep_configs(base: Mapping[str, Any], **choices: Sequence[Any]) -> list[Config]:
    """A config for each combination, each with a directory of its own below the base's output_dir.

    :param choices: config key to values, such as `learning_rate=[1e-5, 5e-5], r=[8, 16]`
    """
    return [
        {**base, **dict(pairs), "output_dir": f"{base['output_dir']}/{_name(pairs)}"}
        for pairs in itertools.product(
            *([(key, value) for value in values] for key, values in choices.items())
        )
    ]


def choose_best(
    results: Iterable[Result | None], *, metric: str = "eval_loss", mode: Literal["min", "max"] = "min"
) -> Result:
    """The result with the best `metric`; runs that failed or do not have it are left out.

    :raises AirflowFailException: none has it
    """
    finished = [result for result in results if result]
    ranked = sorted(
        (result for result in finished if metric in result), key=lambda result: _value(result, metric)
    )
    for result in ranked:
        log.info("%s %.6g: %s", metric, _value(result, metric), result.get("model_path"))
    if not ranked:
        raise AirflowFailException(
            f"None of {len(finished)} results has {metric!r}. Give validation_data_path, or choose another metric."
        )
    return ranked[0 if mode == "min" else -1]


def _name(pairs: Iterable[tuple[str, Any]]) -> str:
    return ",".join(f"{key}={value}" for key, value in pairs).replace("/", "_").replace(" ", "")


def _value(result: Result, metric: str) -> float:
    return float(result[metric])  # type: ignore[literal-required]
