"""trl's SFTTrainer, configured: exact loss without needless work, checkpoints that can be trusted, no false success."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import trl.trainer.sft_trainer as trl_sft
from datasets import IterableDataset
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import SFTTrainer

from airflow_provider_sft.contract.errors import ConfigError, DivergedError
from trainer.callbacks import FiniteCallback
from trainer.checkpoints import STAGING_DIR, CheckpointStore
from trainer.consensus import Consensus
from trainer.files import prove_writable, read_json, write_json
from trainer.rehearsal import needs_rehearsal, rehearse
from trainer.stream_place import StreamPlace, nothing_to_skip

Batch = dict[str, Any]
NOT_TRAINED = -100  # the label of a position outside the loss
# Beyond this many bytes of float32 logits, trl's fused head, which never holds them, is the better bargain.
_MAX_LOGITS_BYTES = 1 << 30
_FLOAT32_BYTES = 4
COUNTS_FILE = "sft_counts.json"


class Engine(SFTTrainer):
    """
    :param store: where checkpoints are published
    :param facts: for each checkpoint's manifest
    :param finite: asked before each optimizer step
    """

    def __init__(
        self, *, store: CheckpointStore, facts: dict[str, Any], finite: FiniteCallback, **kwargs: Any
    ) -> None:
        self._store = store
        self._facts = facts
        self._finite = finite
        self._saving = self._rehearses = False
        collator = kwargs.pop("data_collator")
        args, config = kwargs["args"], kwargs["model"].config.get_text_config()
        if args.ddp_find_unused_parameters is None and not getattr(config, "num_experts_per_tok", None):
            # Looking for them walks the whole graph each step; only experts can be left out of one.
            args.ddp_find_unused_parameters = False
        labelled = LabelPositions(collator)
        with _lm_head_adapters_allowed():
            super().__init__(data_collator=labelled, **kwargs)
        self.remove_callback(PrinterCallback)  # progress is told by our own
        workers = self.args.dataloader_num_workers
        self.place = StreamPlace(self.train_dataset, world_size=self.args.world_size, num_workers=workers)
        self.data_collator = functools.partial(self.place.collate, labelled)
        # Both losses below are normalised over the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.consensus = Consensus()
        self.trained_tokens, self.tokens_per_s = 0, 0.0
        self._parameters: int | None = None
        self._counts: Tensor | None = None  # [tokens, trained tokens] not yet summed
        self._tokens = self._tokens_logged = 0
        self._train_began = self._logged_at = time.monotonic()
        self._takes_positions = _takes_positions(self.model)
        self._adapts_head = _adapts_head(self.model)
        if self._adapts_head and not self._is_plain(torch.zeros(0)):
            raise ConfigError(
                "target_modules adapts lm_head, which loss_type 'dft' and label_smoothing_factor do not support. "
                "Leave lm_head out of target_modules, or drop those keys."
            )

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy over the positions that are trained, and only those go through the LM head.

        Equal to trl's loss to float error, with the auxiliary loss of a mixture of experts. trl's own serves dft, label
        smoothing, prompt tuning, and batches whose logits would be large.
        """
        self._count(inputs.pop("token_counts", None))
        self.place.take(inputs, trains=self.model.training)
        positions = inputs.pop("logits_to_keep", None)
        if positions is None or not self._is_plain(positions):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**inputs, **routed, logits_to_keep=positions, use_cache=False)
        targets = labels[:, positions + 1]
        loss = cross_entropy(
            outputs.logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NOT_TRAINED, reduction="sum"
        )
        whole_batch = num_items_in_batch is not None  # all its micro-batches, on all ranks
        num_items = num_items_in_batch if whole_batch else (targets != NOT_TRAINED).sum()
        loss = loss / torch.as_tensor(num_items).clamp(min=1)
        if whole_batch and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if (balance := getattr(outputs, "aux_loss", None)) is not None and self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if whole_batch and self.model.training else 1
            loss = loss + self.router_aux_loss_coef * balance.to(loss.device) / steps
        return (loss, outputs) if return_outputs else loss

    def _is_plain(self, positions: Tensor) -> bool:
        vocabulary = self.model.config.get_text_config().vocab_size
        return (
            self._takes_positions
            and self.args.loss_type == "nll"
            and self.label_smoother is None
            and self.compute_loss_func is None
            and (self._adapts_head or positions.numel() * vocabulary * _FLOAT32_BYTES <= _MAX_LOGITS_BYTES)
        )

    def floating_point_ops(self, inputs: Batch) -> int:
        """Transformers' figure, which counts all parameters anew at each step: with LoRA a tenth of a short step."""
        if self._parameters is None:
            self._parameters = self.model.num_parameters(exclude_embeddings=True)
        return 6 * int(inputs["input_ids"].numel()) * self._parameters

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self._last_loss: Tensor = super().training_step(*args, **kwargs)
        return self._last_loss

    def get_batch_samples(self, *args: Any) -> Any:
        batches, num_items = super().get_batch_samples(*args)
        if self._rehearses and batches:
            self._rehearses = False
            model = self.model_wrapped
            if needs_rehearsal(model):
                rehearse(model, lambda: self.training_step(model, batches[0], num_items))
                self._counts = None
        return batches, num_items

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if grad_norm is not None:
            self._finite.check_gradient(float(grad_norm), self.state.global_step + 1, self._last_loss)
        return grad_norm

    def use_callbacks(self, *callbacks: TrainerCallback) -> None:
        for callback in callbacks:
            self.add_callback(callback)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        self._rehearses = bool(resume_from_checkpoint)
        if resume_from_checkpoint:
            counts = read_json(Path(resume_from_checkpoint) / COUNTS_FILE) or {}
            self.trained_tokens = int(counts.get("trained_tokens", 0))
        self._logged_at = self._train_began = time.monotonic()
        is_there = resume_from_checkpoint and self.place.load(Path(resume_from_checkpoint))
        with nothing_to_skip() if is_there else contextlib.nullcontext():
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, *args: Any
    ) -> tuple[int, int]:
        """Logging and saving as this config says, whoever left the checkpoint; and the place in a stream.

        Transformers takes a stream for one endless epoch and would skip more batches than a pass over it has.
        """
        place: tuple[int, int] = super()._init_training_state(max_steps, num_update_steps_per_epoch, *args)
        self.state.compute_steps(self.args, max_steps)
        if not isinstance(self.train_dataset, IterableDataset) or not self.state.global_step:
            return place
        passes = int(self.state.epoch or 0.0)
        share_of_pass = (self.state.epoch or 0.0) - passes
        batches_in_epoch = num_update_steps_per_epoch * self.args.gradient_accumulation_steps
        return passes, round(share_of_pass * batches_in_epoch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Transformers' log with `tokens_per_s` over all ranks; trl's own metrics belong to its own loss."""
        if "loss" in logs:
            self._sum_counts()
            now = time.monotonic()
            logs["tokens_per_s"] = (self._tokens - self._tokens_logged) / max(now - self._logged_at, 1e-9)
            self._tokens_logged, self._logged_at = self._tokens, now
        Trainer.log(self, logs, start_time)

    def _count(self, counts: Tensor | None) -> None:
        # Added on the device: reading it here would make the host wait for every batch.
        if counts is not None and self.model.training:
            self._counts = counts if self._counts is None else self._counts + counts

    def _sum_counts(self) -> None:
        """Bring the counts up to date over all ranks; every rank must come here."""
        if self._counts is None:
            return
        tokens, trained = self.accelerator.reduce(self._counts, reduction="sum").tolist()
        self._counts = None
        self._tokens += tokens
        self.trained_tokens += trained
        self.tokens_per_s = self._tokens / max(time.monotonic() - self._train_began, 1e-9)

    def _get_output_dir(self, trial: Any) -> str:
        output_dir = super()._get_output_dir(trial)
        return str(Path(output_dir) / STAGING_DIR) if self._saving else output_dir

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Into staging by transformers; then flushed, described by a manifest and renamed by one rank."""
        self.check_weights()
        step = self.state.global_step
        self._sum_counts()
        self._saving = True
        try:
            Trainer._save_checkpoint(self, model, trial)  # noqa: SLF001  # trl's adds a model card each time
        except RuntimeError:
            prove_writable(
                self._store.staging_dir
            )  # torch.save loses the reason; the system call's own says it
            raise
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(self._store.output_dir / f"checkpoint-{step}")
        if self.is_world_process_zero():
            staged = self._store.staging_dir / f"checkpoint-{step}"
            self.state.save_to_json(str(staged / "trainer_state.json"))
            write_json(staged / COUNTS_FILE, {"trained_tokens": self.trained_tokens})
            self.place.save(staged)
            best = self.state.best_model_checkpoint
            self._store.publish(step, self._facts, best=Path(best) if best else None)
        self.accelerator.wait_for_everyone()

    def check_weights(self) -> None:
        """:raises DivergedError: a trained weight is not finite, on any rank"""
        bad = [
            name
            for name, weight in self.model.named_parameters()
            if weight.requires_grad and not _is_finite(weight)
        ]
        if any(self.consensus.any(bool(bad))):
            where = f" ({bad[0]})" if bad else ""
            raise DivergedError(
                f"A weight{where} is not finite at step {self.state.global_step}: training diverged."
            )


class LabelPositions:
    """A collator that also says, on the CPU, which positions predict a trained token.

    Adds `token_counts`, a LongTensor [2] of tokens without padding and of trained ones, and `logits_to_keep`, a LongTensor [K] of positions p with labels[:, p + 1] trained in any row; at least one, so
    that a batch without any still gives a differentiable zero.
    """

    def __init__(self, collator: Callable[[list[Batch]], Batch]) -> None:
        self._collator = collator

    def __call__(self, rows: list[Batch]) -> Batch:
        batch = self._collator(rows)
        positions = (batch["labels"][:, 1:] != NOT_TRAINED).any(dim=0).nonzero().flatten()
        mask = batch.get("attention_mask", batch["input_ids"].new_ones(batch["input_ids"].shape))
        batch["token_counts"] = torch.stack([mask.sum(), (batch["labels"][:, 1:] != NOT_TRAINED).sum()])
        batch["logits_to_keep"] = positions if positions.numel() else torch.zeros(1, dtype=torch.long)
        return batch


def _is_finite(weight: Tensor) -> bool:
    local = (weight.to_local() if hasattr(weight, "to_local") else weight).detach()
    # The sum is finite only where every element is, and costs no second tensor; a sum that overflows says nothing.
    return bool(torch.isfinite(local.sum()) or torch.isfinite(local).all())


def _takes_positions(model: Any) -> bool:
    """The causal LM's own forward has `logits_to_keep`, and no virtual tokens shift its positions."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


@contextlib.contextmanager
def _lm_head_adapters_allowed() -> Iterator[None]:
    """Pass by trl's refusal of an adapter on lm_head: its fused head would ignore it, the loss above does not."""
    layer_kind = trl_sft.BaseTunerLayer
    trl_sft.BaseTunerLayer = ()  # isinstance(layer, ()) is False
    try:
        yield
    finally:
        trl_sft.BaseTunerLayer = layer_kind


def _adapts_head(model: Any) -> bool:
    return isinstance(model.get_output_embeddings(), BaseTunerLayer)
