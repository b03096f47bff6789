"""Configs with which nothing would be learned, as far as the config shows it: a rule each, with its own sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from airflow_provider_sft.contract.codec import Config

# Schedules that ignore the warm-up.
_WITHOUT_WARMUP = frozenset({"constant", "reduce_lr_on_plateau", "greedy"})


def find_idle_training(config: Config) -> list[str]:
    """One sentence per mistake.

    :param config: under present names, each value fit for its key
    """
    if config.get("do_dataprocessing_only"):
        return []
    return [sentence for rule in _RULES for sentence in rule(config)]


def describe_warmup(scheduler: str, warmup: float, num_steps: int) -> str | None:
    """A sentence if the warm-up takes the whole run: the learning rate rises from 0 and never reaches its value.

    :param warmup: `warmup_steps`: a number of steps, or below 1 a share of the run
    """
    if scheduler in _WITHOUT_WARMUP or num_steps < 1:
        return None
    steps = int(warmup) if warmup >= 1 else math.ceil(num_steps * warmup)
    if steps < num_steps:
        return None
    return (
        f"Config key 'warmup_steps' is {warmup:g}, so the warm-up takes {steps} of the run's {num_steps} steps and the "
        f"learning rate never reaches its value. Lower warmup_steps (or warmup_ratio), or train more steps."
    )


def _zero_learning_rate(config: Config) -> Iterator[str]:
    if config.get("learning_rate", 1) == 0:
        yield (
            "Config key 'learning_rate' is 0, so nothing would be learned. Give a positive number, for example 5e-5, or "
            "drop the key."
        )


def _zero_steps(config: Config) -> Iterator[str]:
    if config.get("max_steps", -1) == 0:
        yield (
            "Config key 'max_steps' is 0, so nothing would be learned. Give 1 or more, or drop the key to train for "
            "num_train_epochs."
        )


def _long_warmup(config: Config) -> Iterator[str]:
    scheduler = str(config.get("lr_scheduler_type") or "linear")
    sentence = describe_warmup(scheduler, _number(config, "warmup_steps"), int(_number(config, "max_steps")))
    if sentence:
        yield sentence


def _number(config: Config, key: str) -> float:
    value: Any = config.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


_RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    _zero_learning_rate,
    _zero_steps,
    _long_warmup,
)
