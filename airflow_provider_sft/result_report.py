"""What a finished run leaves in Airflow: a summary in the log, and Asset events that the next DAG can start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.contract.plain_text import plain_lines
from airflow_provider_sft.contract.progress import describe_duration
from airflow_provider_sft.failures import TrainingFailure
from airflow_provider_sft.links import LINKS_KEY, find_links
from airflow_provider_sft.metrics import emit_end, task_tags

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_SECONDS_PER_HOUR = 3600


@contextmanager
def announcing(operator: Any, context: Context) -> Iterator[None]:
    """Around a task's work: links while it goes on, and what its failure leaves."""
    operator.found_links = _links_of(operator, None)
    try:
        yield
    except TrainingFailure as failure:
        emit_end(type(failure).__name__, failure.result, task_tags(context))
        operator.found_links = _links_of(operator, failure.result)
        raise


def announce_result(operator: Any, context: Context, result: Result) -> None:
    """Log what came out, and make it the `extra` of the event of every Asset among the task's outlets."""
    emit_end("succeeded", result, task_tags(context))
    operator.found_links = _links_of(operator, result)
    context["ti"].xcom_push(key=LINKS_KEY, value=operator.found_links)
    for line in describe_result(result):
        operator.log.info("%s", plain_lines(line))
    _store_resumption(context.get("task_state_store"), result)
    for asset in operator.outlets:
        context["outlet_events"][asset].extra.update(cast("dict[str, Any]", result))


def describe_result(result: Result) -> list[str]:
    """A line for the model, one for the training, and one for each notice and vLLM verdict."""
    lines = [
        _phrase(f"Model ({result.get('model_kind', 'unknown kind')}): {{}}", result.get("model_path")),
        _join(
            _phrase("{} steps", result.get("steps")),
            _losses(result),
            _phrase("eval loss {:.4g}", result.get("eval_loss")),
            _phrase("{}", _duration(result.get("wall_s"))),
            _phrase("{:.2f} GPU hours over all attempts", _hours(result.get("gpu_s"))),
        ),
    ]
    lines += [f"Notice: {notice}" for notice in result.get("notices", [])]
    lines += [
        f"vLLM {verdict['releases']}: {verdict['verdict'].replace('_', ' ')}. {verdict['reason']}".rstrip()
        for verdict in result.get("vllm_verdict", [])
    ]
    return [line for line in lines if line]


def _store_resumption(store: Any | None, result: Result) -> None:
    """For the Storage tab: which attempt this was, and where it went on."""
    if store is not None and "attempt" in result:
        store.set("attempt", result["attempt"])
        store.set("resumed_from", result.get("resumed_from_step", 0))


def _links_of(operator: Any, result: Result | None) -> dict[str, str]:
    config = operator.config if isinstance(operator.config, Mapping) else {}
    return find_links(config, operator.artifacts_url, result)


def _phrase(form: str, value: float | str | None) -> str:
    return "" if value is None else form.format(value)


def _join(*phrases: str) -> str:
    return ", ".join(phrase for phrase in phrases if phrase)


def _losses(result: Result) -> str:
    losses = [result.get("train_loss_first"), result.get("train_loss_last")]
    known = [f"{loss:.4g}" for loss in losses if loss is not None]
    return f"loss {' to '.join(known)}" if known else ""


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else describe_duration(seconds)


def _hours(seconds: float | None) -> float | None:
    return seconds / _SECONDS_PER_HOUR if seconds else None
