"""`sft_tuning_group`: check the data, tune, evaluate, and let only a good model pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, TaskGroup, task

from airflow_provider_sft.contract.outcome import Result


def sft_tuning_group(
    group_id: str = "tuning",
    *,
    operator_class: type[BaseOperator],
    config: Mapping[str, Any],
    evaluate: Callable[[Result], Mapping[str, float]] | None = None,
    at_most: Mapping[str, float] | None = None,
    at_least: Mapping[str, float] | None = None,
    check_with: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> TaskGroup:
    """A TaskGroup of `check_data >> tune >> evaluate >> gate`; downstream of it runs only what passed.

    :param operator_class: SFTTrainerOperator or LocalSFTTrainerOperator
    :param config: a dict; `check_data` prepares its data as the tuning will, and trains nothing
    :param evaluate: called on the worker with the result, returns figures of its own; None: no such task
    :param at_most: figure to its highest value, such as `{"eval_loss": 1.5}`; of the result and of `evaluate`
    :param at_least: figure to its lowest value
    :param check_with: parameters of `check_data` that differ, such as `{"gpus": 0}`
    :param parameters: of both operators
    """
    with TaskGroup(group_id) as group:
        check = operator_class(
            task_id="check_data", config=_data_only(config), **{**parameters, **(check_with or {})}
        )
        tune = operator_class(task_id="tune", config=config, **parameters)
        result: Any = tune.output  # an XComArg now, a Result when the task runs
        figures: Any = task(task_id="evaluate")(evaluate)(result) if evaluate else None
        gate = task(task_id="gate")(check_limits)(
            result, figures=figures, at_most=dict(at_most or {}), at_least=dict(at_least or {})
        )
        check >> tune >> gate
    return group


def check_limits(
    result: Result,
    *,
    figures: Mapping[str, float] | None = None,
    at_most: Mapping[str, float],
    at_least: Mapping[str, float],
) -> Result:
    """The result, when every figure is within its limits.

    :raises AirflowFailException: one is not, or is not there
    """
    known: dict[str, Any] = {**result, **(figures or {})}
    broken = [
        f"{name} is {known.get(name)}, at most {limit}"
        for name, limit in at_most.items()
        if not _holds(known, name, limit)
    ]
    broken += [
        f"{name} is {known.get(name)}, at least {limit}"
        for name, limit in at_least.items()
        if not _holds(known, name, limit, sign=-1)
    ]
    if broken:
        raise AirflowFailException(f"The model does not pass: {'; '.join(broken)} was wanted.")
    return result


def _holds(known: Mapping[str, Any], name: str, limit: float, *, sign: int = 1) -> bool:
    return name in known and sign * float(known[name]) <= sign * limit


def _data_only(config: Mapping[str, Any]) -> dict[str, Any]:
    output_dir = f"{config['output_dir'].rstrip('/')}-data"
    return {**config, "do_dataprocessing_only": True, "output_dir": output_dir}
