"""What a tuning run needs at least: memory, storage, and where each figure comes from.

Lower bounds, for sentences that say "cannot fit" and "needs at least"; none of them says that a run fits: rows, kernels
and fragmentation take more. Bytes a parameter, measured on saved checkpoints: float32 weights 4.0 and AdamW 8.0,
bfloat16 2.0 and 4.0, LoRA 4.0 and 8.0 to 8.2 a trained one (headers weigh in where the rank is small).

For a pod: `memory` is `host.size_bytes`; `ephemeral-storage` is `download.size_bytes`, and `storage.size_bytes` more
when output_dir lies on no volume.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.adapter_layout import embedding_side
from airflow_provider_sft.contract.model_size import ModelSize, Shape, find_model_size

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "auto": 2}
_ADAPTER_BYTES = 4  # PEFT keeps an adapter in float32
_FOUR_BITS_BYTES = 0.5
# A rank with torch, transformers and trl loaded, before any model; and the parent beside it.
_RANK_BASE_BYTES = 450 * 2**20
_PARENT_BASE_BYTES = 30 * 2**20
# States of one parameter that an optimiser keeps; the others keep two.
_OPTIMISER_STATES = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}
# They keep a fraction that depends on shapes and ranks: nothing is what they keep at least.
_STATELESS = ("adafactor", "galore", "apollo", "lomo", "adalomo")
# What PEFT takes for target_modules that are not set, by the names that an architecture has.
_PEFT_CHOICES = (
    ("q_proj", "v_proj"),
    ("query_key_value",),
    ("c_attn",),
    ("qkv_proj",),
    ("Wqkv",),
    ("query", "value"),
    ("q", "v"),
)
# Bytes of activations a token and layer leaves for the backward pass, in widths of the layer and of its MLP.
_WIDTHS_KEPT, _MLP_WIDTHS_KEPT = 12, 4


@dataclass(frozen=True)
class Amount:
    """:param why: the arithmetic, for people"""

    size_bytes: int
    why: str

    def __str__(self) -> str:
        return f"{describe_bytes(self.size_bytes)} ({self.why})"


@dataclass(frozen=True)
class Estimate:
    """What a run needs at least.

    :param trained: how many parameters are trained
    :param checkpoint: one of them
    :param kept: checkpoints that are there at once at most, the one being written included; None: as many as are saved
    :param storage: in output_dir: the checkpoints, the final model, the export; with `kept` None, one checkpoint
    :param storage_floor: what even a run that saves once takes there
    :param final: the tuned model and its export, without checkpoints
    :param download: a base model from the Hub, in the container's own storage
    :param device: memory of each accelerator, without what rows take; of 0 bytes without accelerators
    :param activations: what rows of max_length tokens add to `device` (without accelerators, to `host`), roughly
    :param host: the container's memory
    """

    model: ModelSize
    trained: int
    checkpoint: Amount
    kept: int | None
    storage: Amount
    storage_floor: Amount
    final: Amount
    download: Amount
    device: Amount
    activations: Amount
    host: Amount


def estimate_run(
    values: Mapping[str, Any], *, gpus: int = 0, model_parameters: float | None = None
) -> Estimate | None:
    """
    :param values: `Settings.values`: every key under its present name
    :param gpus: over all nodes; 0 trains on CPU
    :param model_parameters: used where the model's files cannot be read
    :returns: None when the size of the model is not known
    """
    model = find_model_size(str(values["model_name_or_path"]), model_parameters)
    return None if model is None else _Estimator(values, model, gpus).estimate()


class _Estimator:
    def __init__(self, values: Mapping[str, Any], model: ModelSize, gpus: int) -> None:
        self._values = values
        self._model = model
        self._gpus = 0 if values.get("use_cpu") else gpus
        self._dtype_bytes = _DTYPE_BYTES.get(str(values.get("dtype") or "bfloat16").removeprefix("torch."), 2)
        self._is_adapter = (values.get("peft_method") or "none") != "none"
        self._trained = _count_trained(values, model)
        self._trained_bytes = _ADAPTER_BYTES if self._is_adapter else self._dtype_bytes
        self._optimiser_bytes = _optimiser_bytes(str(values.get("optim")), self._trained_bytes)

    def estimate(self) -> Estimate:
        checkpoint = self._checkpoint()
        kept = _count_kept(self._values)
        return Estimate(
            model=self._model,
            trained=self._trained,
            checkpoint=checkpoint,
            kept=kept,
            storage=self._storage(checkpoint, 1 if kept is None else kept),
            storage_floor=self._storage(checkpoint, 0 if kept == 0 else 1),
            final=self._storage(checkpoint, 0),
            download=self._download(),
            device=self._device(),
            activations=self._activations(),
            host=self._host(),
        )

    def _checkpoint(self) -> Amount:
        weights = self._saved_bytes()
        optimiser = 0 if self._values.get("save_only_model") else self._trained * self._optimiser_bytes
        parts = {"weights": weights, "optimiser": int(optimiser), "tokenizer": self._model.tokenizer_bytes}
        return _sum(parts)

    def _saved_bytes(self) -> int:
        """The trained weights as files, and the vocabulary that an adapter with new tokens carries along."""
        saved = self._trained * self._trained_bytes
        if self._is_adapter and self._values.get("add_special_tokens"):
            vocabulary = {m: shape for m, shape in self._model.matrices.items() if embedding_side(m)}
            saved += sum(map(math.prod, vocabulary.values())) * self._dtype_bytes
        return int(saved)

    def _storage(self, checkpoint: Amount, kept: int) -> Amount:
        parts = {
            f"{kept} checkpoint{'' if kept == 1 else 's'}": kept * checkpoint.size_bytes,
            "final model": self._saved_bytes() + self._model.tokenizer_bytes,
            "export": self._export_bytes(),
        }
        return _sum(parts)

    def _export_bytes(self) -> int:
        if not self._is_adapter or not self._values.get("lora_post_process_for_vllm"):
            return 0
        if self._values.get("vllm_export") in ("merged", "both"):
            return self._model.parameters * self._dtype_bytes
        return self._saved_bytes()

    def _download(self) -> Amount:
        name = str(self._values["model_name_or_path"])
        if name.startswith(("/", ".", "~")) or "headers" in self._model.source:
            return Amount(0, "the model is on a volume")
        return _sum({"base model from the Hub": self._model.parameters * _DTYPE_BYTES["auto"]})

    def _device(self) -> Amount:
        if not self._gpus:
            return Amount(0, "no accelerator")
        shared = _sum(self._model_parts())
        if self._gpus == 1:
            return shared
        why = f"{shared.why}, over {self._gpus} accelerators"
        return Amount(shared.size_bytes // self._gpus, why)

    def _model_parts(self) -> dict[str, int]:
        quantised = self._values.get("bnb_qlora") or self._values.get("auto_gptq")
        weights = self._model.parameters * (_FOUR_BITS_BYTES if quantised else self._dtype_bytes)
        if self._is_adapter:
            weights += self._trained * _ADAPTER_BYTES
        return {
            "weights": int(weights),
            "gradients": self._trained * self._trained_bytes,
            "optimiser": int(self._trained * self._optimiser_bytes),
        }

    def _activations(self) -> Amount:
        """For one micro-batch of full-length rows, on one device."""
        values, model = self._values, self._model
        tokens = int(values.get("per_device_train_batch_size") or 1) * int(values.get("max_length") or 1)
        kept = _WIDTHS_KEPT * model.hidden_size + _MLP_WIDTHS_KEPT * model.intermediate_size
        if values.get("gradient_checkpointing"):
            layers = model.num_layers * model.hidden_size + kept
        else:
            layers = model.num_layers * kept
        logits_bytes = min(tokens * model.vocab_size * 2 * _DTYPE_BYTES["float32"], 2 * 2**30)
        return _sum(
            {f"layers of {tokens} tokens": tokens * layers * self._dtype_bytes, "logits": logits_bytes}
        )

    def _host(self) -> Amount:
        ranks = max(self._gpus, 1)
        parts = {"Python and torch": _PARENT_BASE_BYTES + ranks * _RANK_BASE_BYTES}
        if not self._gpus:
            parts |= self._model_parts()
        elif self._gpus > 1:
            # FSDP loads the whole model on one rank, and gathers it there for each checkpoint.
            parts["the model on rank 0"] = self._model.parameters * self._dtype_bytes
        return _sum(parts)


def _count_trained(values: Mapping[str, Any], model: ModelSize) -> int:
    method = values.get("peft_method") or "none"
    if method == "none":
        return model.parameters
    if method == "pt":
        return int(values.get("num_virtual_tokens") or 0) * model.hidden_size
    rank = int(values.get("r") or 8)
    per_matrix = [
        rank * sum(shape) + (shape[0] if values.get("use_dora") else 0)
        for shape in _targets(values.get("target_modules"), model)
    ]
    whole = [shape for m, shape in model.matrices.items() if _ends_in(m, values.get("modules_to_save") or ())]
    return sum(per_matrix) + sum(map(math.prod, whole)) + _count_new_rows(values, model)


def _count_new_rows(values: Mapping[str, Any], model: ModelSize) -> int:
    """The rows of new tokens, in the embedding and in the LM head."""
    if values.get("train_new_tokens") is False:
        return 0
    return 2 * len(values.get("add_special_tokens") or ()) * model.hidden_size


def _targets(wanted: Any, model: ModelSize) -> list[Shape]:
    """The shapes of the matrices that get LoRA."""
    layers = {module: shape for module, shape in model.matrices.items() if not embedding_side(module)}
    if wanted in ("all-linear", ["all-linear"]):
        return list(layers.values())
    if isinstance(wanted, str):
        return [shape for module, shape in model.matrices.items() if re.fullmatch(wanted, module)]
    if wanted and (named := [shape for module, shape in model.matrices.items() if _ends_in(module, wanted)]):
        return named
    choices = (
        [shape for module, shape in layers.items() if _ends_in(module, names)] for names in _PEFT_CHOICES
    )
    return next(filter(None, choices), [])


def _ends_in(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _optimiser_bytes(optim: str, state_bytes: int) -> float:
    """Bytes a trained parameter."""
    if any(name in optim for name in _STATELESS):
        return 0
    states = next((count for name, count in _OPTIMISER_STATES.items() if name in optim), 2)
    if "8bit" in optim:
        return states
    return states * (_FOUR_BITS_BYTES if "4bit" in optim else state_bytes)


def _count_kept(values: Mapping[str, Any]) -> int | None:
    """Checkpoints at once: those that stay, and the one that is written before the oldest goes."""
    saved, limit = _count_saved(values), values.get("save_total_limit")
    if saved is None:
        return None if limit is None else int(limit) + 1
    return saved if limit is None or saved <= int(limit) else int(limit) + 1


def _count_saved(values: Mapping[str, Any]) -> int | None:
    """How often the run saves, None when that depends on the data."""
    strategy, max_steps = values.get("save_strategy", "epoch"), int(values.get("max_steps") or -1)
    if strategy == "no":
        return 0
    every = float(values.get("save_steps") or 500)
    if strategy == "steps" and every < 1:
        return math.ceil(1 / every)
    if strategy == "steps" and max_steps > 0:
        return math.ceil(max_steps / every)
    if strategy == "epoch" and max_steps < 1:
        return math.ceil(float(values.get("num_train_epochs") or 1))
    return None


def _sum(parts: Mapping[str, int]) -> Amount:
    why = ", ".join(f"{name} {describe_bytes(size)}" for name, size in parts.items() if size)
    return Amount(sum(parts.values()), why or "nothing")


def describe_bytes(size_bytes: float) -> str:
    """`1.5 GiB`"""
    size, units = float(size_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:  # noqa: PLR2004
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" or size >= 100 else f"{size:.1f} {units[0]}"  # noqa: PLR2004
