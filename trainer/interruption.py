"""Stopping where a signal finds the training: after the step, or in the middle of an evaluation."""

from __future__ import annotations

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.consensus import Consensus, StopSignal
from trainer.supervise import NOTHING_SAVED


class EvaluationStopped(Exception):  # noqa: N818  # no error: the engine saves, and the next attempt evaluates
    """A signal came, and an evaluation may take longer than the grace period."""


class StopCallback(TrainerCallback):
    """After SIGTERM to any rank: finish the step, save, stop. `stopped` then says so on every rank.

    After the last step nothing is left to stop: the final model is saved, and the parent ends there.
    """

    def __init__(self, signal: StopSignal, consensus: Consensus) -> None:
        self._signal = signal
        self._consensus = consensus
        self.stopped = False
        self._saved_step = -1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: object
    ) -> None:
        if state.global_step < state.max_steps and self._is_asked():
            control.should_training_stop = True
            control.should_save = state.global_step != self._saved_step

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: object
    ) -> None:
        """:raises EvaluationStopped: on every rank, at the same batch"""
        if self._is_asked():
            control.should_training_stop = True
            raise EvaluationStopped

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: object
    ) -> None:
        self._saved_step = state.global_step
        if state.global_step < state.max_steps and not self.stopped and self._is_asked():
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: object
    ) -> None:
        """Transformers comes here for an epoch that was broken off as well: nothing is due then."""
        if self.stopped:
            is_whole = float(state.epoch or 0.0).is_integer()
            control.should_evaluate = control.should_evaluate and is_whole
            control.should_save = False

    def describe(self, step: int) -> str:
        if step:
            return f"Interrupted at step {step} and saved."
        return NOTHING_SAVED

    def _is_asked(self) -> bool:
        [self.stopped] = self._consensus.any(self._signal.received)
        return self.stopped
