"""trl's SFTTrainer, configured: exact loss without needless work, checkpoints that can be trusted, no false success."""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl
from trl import SFTTrainer

from airflow_provider_sft.contract.errors import ConfigError, DivergedError
from trainer.callbacks import FiniteCallback
from trainer.checkpoints import STAGING_DIR, CheckpointStore
from trainer.consensus import Consensus
from trainer.data.masking import NOT_TRAINED
from trainer.data.positions import Batch, LabelPositions
from trainer.files import prove_writable, read_json, write_json
from trainer.interruption import EvaluationStopped
from trainer.learning import WeightWatch
from trainer.lm_head import adapts_head, lm_head_adapters_allowed, takes_positions
from trainer.rehearsal import needs_rehearsal, rehearse
from trainer.stream_place import StreamPlace, nothing_to_skip

# Beyond this many bytes of float32 logits, trl's fused head, which never holds them, is the better bargain.
_MAX_LOGITS_BYTES = 1 << 30
_FLOAT32_BYTES = 4
LEFT_FILE = "sft_counts.json"  # what transformers does not put into a checkpoint


class Engine(SFTTrainer):
    """
    :param store: where checkpoints are published
    :param facts: for each checkpoint's manifest
    :param finite: asked before each optimizer step
    """

    control: TrainerControl

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
        with lm_head_adapters_allowed():
            super().__init__(data_collator=labelled, **kwargs)
        self.remove_callback(PrinterCallback)  # progress is told by our own
        workers = self.args.dataloader_num_workers
        self.place = StreamPlace(self.train_dataset, world_size=self.args.world_size, num_workers=workers)
        self.data_collator = functools.partial(self.place.collate, labelled)
        # Both losses below are normalised over the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.consensus = Consensus()
        self.weights = WeightWatch(self.consensus)
        self._owes_evaluation = False
        self._unpaid: str | None = None  # the checkpoint that owes one
        self.trained_tokens, self.tokens_per_s = 0, 0.0
        self._parameters: int | None = None
        self._counts: Tensor | None = None  # [tokens, trained tokens] not yet summed
        self._tokens = self._tokens_logged = 0
        self._train_began = self._logged_at = time.monotonic()
        self._takes_positions = takes_positions(self.model)
        self._adapts_head = adapts_head(self.model)
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
            left = read_json(Path(resume_from_checkpoint) / LEFT_FILE) or {}
            self._unpaid = resume_from_checkpoint if left.get("owes_evaluation") else None
            tokens = left.get("trained_tokens", 0)
            self.trained_tokens = tokens if isinstance(tokens, int) else 0
            self.weights.resume(left.get("unchanged"))
        self._logged_at = self._train_began = time.monotonic()
        is_there = resume_from_checkpoint and self.place.load(Path(resume_from_checkpoint))
        with (
            nothing_to_skip() if is_there else contextlib.nullcontext(),
            contextlib.suppress(EvaluationStopped),  # in eval_on_start's: there is nothing to save
        ):
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

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._pay_evaluation()
        # Transformers would take a step beyond the last where a checkpoint of the last one is resumed.
        is_over = self.state.global_step >= self.state.max_steps
        if not (self.control.should_training_stop or is_over):
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any) -> Any:
        self._pay_evaluation()  # here where no step was left
        return super()._finalize_training(*args)

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except EvaluationStopped:
            self._owes_evaluation, self.control.should_evaluate = True, False
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _pay_evaluation(self) -> None:
        """After a resume, before the first step: the evaluation that the attempt before broke off at this step.

        Without it the best model and an early end would not be those of an undisturbed run. It had taken its random
        numbers already: those of the checkpoint are put back.
        """
        checkpoint, self._unpaid = self._unpaid, None
        if checkpoint is None or self.eval_dataset is None:
            return
        self._owes_evaluation = True
        with contextlib.suppress(EvaluationStopped):
            self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)
            self._owes_evaluation = False
        self._load_rng_state(checkpoint)
        self._save_checkpoint(self.model_wrapped, None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

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
        unchanged = self.weights.unchanged(self.model)
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
            left = {"trained_tokens": self.trained_tokens, "owes_evaluation": self._owes_evaluation}
            write_json(staged / LEFT_FILE, left | {"unchanged": unchanged})
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


def _is_finite(weight: Tensor) -> bool:
    local = (weight.to_local() if hasattr(weight, "to_local") else weight).detach()
    # The sum is finite only where every element is, and costs no second tensor; a sum that overflows says nothing.
    return bool(torch.isfinite(local.sum()) or torch.isfinite(local).all())
