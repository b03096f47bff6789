"""The controllers of a run, at work: at each trigger the rules are evaluated, and what they ask for is done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partialmethod
from itertools import chain
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import Settings
from trainer.consensus import Consensus
from trainer.controller.file import read_controller_plan
from trainer.controller.log_format import fill_in
from trainer.controller.metrics import EVENTS
from trainer.controller.plan import Action, Controller, ControllerPlan
from trainer.controller.rules import RuleError

log = logging.getLogger("trainer.controller")

# In transformers' TrainerState, which a checkpoint restores; not the name of a class, or transformers would build one.
_STATE_KEY = "trainer_controller"


def build_controller(
    settings: Settings, consensus: Consensus, *, evaluates: bool, say: Callable[[str], None]
) -> list[TrainerCallback]:
    """The callback for `trainer_controller_config_file`, none without it. Every rank needs it.

    :param evaluates: whether there is data to evaluate on
    :param say: hears when a controller ends the training or an epoch early
    :raises ConfigError: a mistake in the file
    """
    file = settings.values.get("trainer_controller_config_file")
    if not file:
        return []
    plan = read_controller_plan(Path(file), evaluates=evaluates)
    for notice in plan.notices:
        say(notice)
    model_dir = str(settings.values.get("save_model_dir") or settings.values["output_dir"])
    return [ControllerCallback(plan, consensus, model_dir=model_dir, say=say)]


@dataclass
class _Watch:
    """A controller at one of its triggers; each counts its patience by itself, as in fms-hf-tuning."""

    controller: Controller
    event: str
    count: int = 0
    was_asked: bool = False
    was_known: bool = False

    @property
    def key(self) -> str:
        return f"{self.controller.name} at {self.event}"

    def is_due(self, outcome: bool | None) -> bool:
        """Whether to act on the rule's outcome; None, a rule that waits for a metric, leaves patience alone."""
        patience = self.controller.patience
        if patience is None or outcome is None:
            return bool(outcome)
        if outcome:
            self.count += 1
        elif patience.resets:
            self.count = 0
        if self.count <= patience.threshold:
            return False
        self.count = 0
        return outcome


class ControllerCallback(TrainerCallback):
    """
    :param consensus: what any rank's rule says of steering, all ranks do; log lines are each rank's own affair
    :param model_dir: where the final model goes, for log lines about it
    """

    def __init__(
        self, plan: ControllerPlan, consensus: Consensus, *, model_dir: str, say: Callable[[str], None]
    ) -> None:
        self._metrics = plan.metrics
        self._consensus = consensus
        self._model_dir = model_dir
        self._say = say
        self._rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self._watches: dict[str, list[_Watch]] = {event: [] for event in EVENTS}
        for controller in plan.controllers:
            for event in controller.triggers:
                self._watches[event].append(_Watch(controller, event))

    def _on(
        self,
        event: str,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        is_final: bool = False,
        **_kwargs: Any,
    ) -> None:
        if not (watches := self._watches[event]):
            return
        metrics = {
            metric.name: metric.read(event, state, rank=self._rank, is_final=is_final)
            for metric in self._metrics
        }
        outcomes = self._agree(watches, [_evaluate(watch, metrics) for watch in watches])
        for watch, outcome in zip(watches, outcomes, strict=True):
            watch.was_asked, watch.was_known = True, watch.was_known or outcome is not None
            if watch.is_due(outcome):
                for action in watch.controller.actions:
                    log.log(watch.controller.log_level, "%s takes %s.", watch.key, action)
                    if action.steers:
                        self._steer(action, watch.controller, state, control)
                    else:
                        given = self._given(watch, args, state, is_final=is_final)
                        _write_line(action, {**given, **metrics})
        self._remember(state)

    def _agree(self, watches: list[_Watch], outcomes: list[bool | None]) -> list[bool | None]:
        """Metrics can differ between ranks (rank, seconds, tokens per second); what steers must not."""
        steering = [index for index, watch in enumerate(watches) if watch.controller.steers]
        if not steering:
            return outcomes
        flags = [flag for index in steering for flag in (outcomes[index] is not None, bool(outcomes[index]))]
        known = self._consensus.any(*flags)
        for position, index in enumerate(steering):
            is_known, is_true = known[2 * position : 2 * position + 2]
            outcomes[index] = is_true if is_known else None
        return outcomes

    def _steer(
        self, action: Action, controller: Controller, state: TrainerState, control: TrainerControl
    ) -> None:
        if action.name in _ENDINGS and state.global_step < state.max_steps:
            self._say(
                f"Trainer controller {controller.name!r} ended {_ENDINGS[action.name]} at step {state.global_step} "
                f"of {state.max_steps}: {controller.rule.text}"
            )
        setattr(control, action.name, True)

    def _given(
        self, watch: _Watch, args: TrainingArguments, state: TrainerState, *, is_final: bool
    ) -> dict[str, Any]:
        """What a log line may fill in besides metrics (`GIVEN_FIELDS`)."""
        path = self._model_dir if is_final else f"{args.output_dir}/checkpoint-{state.global_step}"
        return {
            "event_name": watch.event,
            "control_name": watch.controller.name,
            "args": args.to_sanitized_dict(),
            "state": {field.name: getattr(state, field.name) for field in fields(state)},
            "path": path,
            "hf_path": path,
            "is_final": is_final,
        }

    def _remember(self, state: TrainerState) -> None:
        counts = {
            w.key: w.count for watches in self._watches.values() for w in watches if w.controller.patience
        }
        if counts:
            state.stateful_callbacks[_STATE_KEY] = {"args": {}, "attributes": counts}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        counts = (state.stateful_callbacks.get(_STATE_KEY) or {}).get("attributes", {})
        for watches in self._watches.values():
            for watch in watches:
                watch.count = int(counts.get(watch.key, 0))
        # transformers tells on_init_end to callbacks that are there before the model; this one comes later.
        self._on("on_init_end", args, state, control, **kwargs)
        self._on("on_train_begin", args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._on("on_train_end", args, state, control, **kwargs)
        # The final save follows; fms-hf-tuning tells it as an on_save of its own.
        self._on("on_save", args, state, control, is_final=True, **kwargs)
        for watch in chain.from_iterable(self._watches.values()):
            if watch.was_asked and not watch.was_known:
                self._say(
                    f"Trainer controller {watch.key} never acted: a metric in its rule never had a value: "
                    f"{watch.controller.rule.text}"
                )

    on_epoch_begin = partialmethod(_on, "on_epoch_begin")
    on_epoch_end = partialmethod(_on, "on_epoch_end")
    on_step_begin = partialmethod(_on, "on_step_begin")
    on_step_end = partialmethod(_on, "on_step_end")
    on_substep_end = partialmethod(_on, "on_substep_end")
    on_optimizer_step = partialmethod(_on, "on_optimizer_step")
    on_prediction_step = partialmethod(_on, "on_prediction_step")
    on_predict = partialmethod(_on, "on_predict")
    on_log = partialmethod(_on, "on_log")
    on_evaluate = partialmethod(_on, "on_evaluate")
    on_save = partialmethod(_on, "on_save")


_ENDINGS = {"should_training_stop": "training", "should_epoch_stop": "an epoch"}


def _evaluate(watch: _Watch, metrics: dict[str, Any]) -> bool | None:
    try:
        return watch.controller.rule.evaluate(metrics)
    except RuleError as error:
        rule = watch.controller.rule.text
        raise ConfigError(
            f"Trainer controller {watch.controller.name!r}: the rule {rule!r} {error}"
        ) from error


def _write_line(action: Action, values: dict[str, Any]) -> None:
    operation = action.operation
    log.log(operation.log_level, "%s", fill_in(operation.log_format or "", values))
