"""`enable_reduce_loss_sum`: the loss of a step is a sum over its trained tokens, as in fms-hf-tuning."""

from __future__ import annotations

from typing import Any

from airflow_provider_sft.contract.rules import tuning_method_of
from airflow_provider_sft.contract.settings import Settings
from trainer.data.positions import Batch
from trainer.engine import Engine


def sums_loss(settings: Settings) -> bool:
    """On an adapter the key has no effect, which a notice says."""
    return bool(settings.values.get("enable_reduce_loss_sum")) and tuning_method_of(settings.values) == "none"


class SummedLossEngine(Engine):
    """Sums over a micro-batch; transformers' mean over micro-batches and torch's mean over ranks stay, as there."""

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=1)
        if self.args.average_tokens_across_devices:
            loss = loss / self.accelerator.num_processes
        if self.model.training:
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss
