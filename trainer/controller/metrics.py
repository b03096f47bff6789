"""What rules and log lines see of a training: plain data, made from transformers' TrainerState alone.

Everything comes from the state that a checkpoint restores, so that a resumed run decides as an undisturbed one. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from airflow_provider_sft.contract.wording import suggest

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_prediction_step",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_epoch_end",
    "on_train_end",
)
METRIC_KINDS = ("TrainingState", "EvalMetrics", "Loss", "HistoryBasedMetric", "PerProcessState")
_LOSS_WINDOW = {"loss": "loss", "steps": "step", "epoch": "epoch"}  # a window's list → the log's key


@dataclass(frozen=True)
class Metric:
    """One entry of `controller_metrics`.

    :param window_size: of a HistoryBasedMetric: how many of the latest values it holds; negative: all
    """

    name: str
    kind: str
    window_size: int = 1

    def read(self, event: str, state: Any, *, rank: int, is_final: bool = False) -> Any:
        """Its value at `event`, None while there is none.

        :param state: transformers' TrainerState
        """
        if self.kind == "TrainingState":
            return {
                **{field.name: getattr(state, field.name) for field in fields(state)},
                "is_final": is_final,
            }
        if self.kind == "PerProcessState":
            return {"rank": rank}
        if self.kind == "Loss":
            return next(iter(_newest(_losses(state), 1)), None)
        evaluations = _evaluations(event, state)
        if self.kind == "EvalMetrics":
            return next(iter(_newest(evaluations, 1)), None)
        return {
            "training_loss": _columns(_newest(_losses(state), self.window_size), _LOSS_WINDOW),
            "metrics": _evaluation_columns(_newest(evaluations, self.window_size)),
            "window_size": self.window_size,
        }

    def sample(self) -> Any:
        """Something that looks like its value, to try a rule on before anything is trained."""
        rows = max(self.window_size, 1)
        samples: dict[str, Any] = {
            "TrainingState": Sample(_STATE_SAMPLE),
            "PerProcessState": Sample({"rank": 0}),
            "Loss": Sample(_LOSS_SAMPLE, closed=False),
            "EvalMetrics": Sample(_EVALUATION_SAMPLE, closed=False),
            "HistoryBasedMetric": Sample(
                {
                    "training_loss": Sample({name: [1.0] * rows for name in _LOSS_WINDOW}),
                    "metrics": Sample(
                        {name: [value] * rows for name, value in {**_EVALUATION_SAMPLE, "steps": 1}.items()},
                        closed=False,
                    ),
                    "window_size": self.window_size,
                }
            ),
        }
        return samples[self.kind]


class Sample(dict[str, Any]):
    """:param closed: whether these are all its keys; else a key that none of them is near to may exist too"""

    def __init__(self, values: dict[str, Any], *, closed: bool = True) -> None:
        super().__init__(values)
        self._closed = closed

    def __missing__(self, key: str) -> Any:
        if self._closed or suggest(str(key), self):
            raise KeyError(key)
        return next(iter(self.values()))


def _losses(state: Any) -> list[dict[str, Any]]:
    return [entry for entry in state.log_history if "loss" in entry]


def _evaluations(event: str, state: Any) -> list[dict[str, Any]]:
    """What on_evaluate has told so far: an evaluation's own on_log comes before it."""
    history = state.log_history
    if event == "on_log" and history and _is_evaluation(history[-1]):
        history = history[:-1]
    return [entry for entry in history if _is_evaluation(entry)]


def _is_evaluation(entry: dict[str, Any]) -> bool:
    return any(name.startswith("eval_") for name in entry)


def _newest(entries: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return entries if count < 0 else entries[-count:]


def _columns(entries: list[dict[str, Any]], names: dict[str, str]) -> dict[str, list[Any]]:
    return {name: [entry.get(key) for entry in entries] for name, key in names.items()}


def _evaluation_columns(entries: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = {key: key for entry in entries[-1:] for key in entry if key != "step"}
    return _columns(entries, {**names, "steps": "step"} if names else {})


_LOSS_SAMPLE = {
    "loss": 1.0,
    "grad_norm": 1.0,
    "learning_rate": 1e-5,
    "epoch": 0.5,
    "step": 1,
    "tokens_per_s": 100.0,
}
_EVALUATION_SAMPLE = {
    "eval_loss": 1.0,
    "eval_runtime": 1.0,
    "eval_samples_per_second": 1.0,
    "eval_steps_per_second": 1.0,
    "epoch": 0.5,
    "step": 1,
}
# TrainerState's fields, without importing transformers; a test compares them.
_STATE_SAMPLE = {
    "epoch": 0.5,
    "global_step": 1,
    "max_steps": 10,
    "logging_steps": 1,
    "eval_steps": 1,
    "save_steps": 1,
    "train_batch_size": 4,
    "num_train_epochs": 1,
    "num_input_tokens_seen": 0,
    "total_flos": 0.0,
    "log_history": [_LOSS_SAMPLE],
    "best_metric": 1.0,
    "best_global_step": 1,
    "best_model_checkpoint": "checkpoint-1",
    "is_local_process_zero": True,
    "is_world_process_zero": True,
    "is_hyper_param_search": False,
    "trial_name": "",
    "trial_params": {},
    "stateful_callbacks": {},
    "is_final": False,
}
