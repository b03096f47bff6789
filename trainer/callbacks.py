"""What happens at each step besides training: signs of life, progress, refusing non-finite numbers."""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from airflow_provider_sft.contract.errors import DivergedError
from trainer.progress import ProgressWriter
from trainer.rank import RankChannel

_NO_LOSS = 1e-3


class HeartbeatCallback(TrainerCallback):
    """Every step, every evaluated batch and every save is a sign of life."""

    def __init__(self, channel: RankChannel) -> None:
        self._channel = channel

    def _beat(self, *_args: Any, **_kwargs: Any) -> None:
        self._channel.beat()

    on_train_begin = on_substep_end = on_step_end = on_prediction_step = on_save = on_evaluate = _beat


class ProgressCallback(TrainerCallback):
    """Rank 0 tells how far it is."""

    def __init__(self, writer: ProgressWriter) -> None:
        self._writer = writer

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_kwargs: Any,
    ) -> None:
        if logs and ("loss" in logs or "eval_loss" in logs):
            self._writer.write(state.global_step, state.max_steps, state.epoch or 0.0, logs)


class FiniteCallback(TrainerCallback):
    """Ends a diverged run at the step it happens: transformers' Trainer would log the loss as 0 and exit 0.

    The loss is checked where it is logged, the gradient before each step of the optimizer (`check_gradient`), both
    the same on every rank.

    :param loss_limit: a mean loss beyond it has left cross-entropy's range
    """

    def __init__(self, loss_limit: float) -> None:
        self._loss_limit = loss_limit
        self._was_zero = False

    def check_gradient(self, grad_norm: float, step: int, loss: SupportsFloat) -> None:
        """Before the optimizer's step.

        A gradient of exactly 0 in two steps running, while the loss is not 0, is a model driven out of its range
        (measured: LoRA at a learning rate of 1e12).

        :param loss: of the last batch; read only when the gradient is 0
        """
        if not math.isfinite(grad_norm):
            raise DivergedError(f"The gradient is {grad_norm} at step {step}: training diverged.")
        was_zero, self._was_zero = self._was_zero, grad_norm == 0
        if was_zero and self._was_zero and float(loss) > _NO_LOSS:
            raise DivergedError(
                f"The gradient is 0 at step {step} while the loss is not: nothing can be learned any more.",
                advice="Lower learning_rate, or lora_dropout where it is close to 1.",
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_kwargs: Any,
    ) -> None:
        for name in ("loss", "eval_loss"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(value) or value > self._loss_limit:
                raise DivergedError(
                    f"The {name} is {value:.4g} at step {state.global_step}: training diverged."
                )


def loss_limit(vocabulary: int) -> float:
    """A guess at random costs ln(vocabulary); a hundred times that is no cross-entropy of a model that still learns."""
    return 100 * math.log(max(vocabulary, 2))
