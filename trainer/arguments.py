"""The arguments of transformers' Trainer, made from the config's training section."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from accelerate.utils import DistributedType
from trl import SFTConfig

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.outcome import Distributed
from airflow_provider_sft.contract.settings import Settings
from airflow_provider_sft.contract.wording import show
from trainer.failures import wrong_config
from trainer.rank import RunOrder

# What the trainer does itself, and how trl is told so.
_OURS: dict[str, Any] = {
    "report_to": "none",  # trackers are callbacks of our own choosing
    "disable_tqdm": True,  # progress is a line a logging step
    "logging_nan_inf_filter": False,  # a non-finite loss ends the run instead of being hidden
    "dataset_kwargs": {"skip_prepare_dataset": True},  # rows come tokenised and masked
    "remove_unused_columns": False,
    "max_length": None,
    "packing": False,
    "padding_free": False,
    "save_total_limit": None,  # checkpoints are rotated after they are verified
    "resume_from_checkpoint": None,  # the parent chooses the checkpoint
}
# Read by our own code from the config: trl would act on them a second time.
_NOT_TRLS = frozenset(
    {
        "assistant_only_loss",
        "chat_template_path",
        "completion_only_loss",
        "eos_token",
        "eval_packing",
        "model_init_kwargs",
        "packing_strategy",
        "pad_token",
        "shuffle_dataset",
        "trust_remote_code",
    }
)

_COMPILES = ("torch_compile", "torch_compile_mode", "torch_compile_backend")


def build_training_args(settings: Settings, order: RunOrder) -> SFTConfig:
    """
    Making them starts the process group, so every rank must come here.

    :raises ConfigError: transformers or trl find a contradiction, or FSDP has one process alone
    """
    given = settings.section("training")
    has_gpu = torch.cuda.is_available()
    options = {
        **{name: value for name, value in given.items() if name not in _NOT_TRLS},
        **_OURS,
        "output_dir": order.output_dir,
        "use_cpu": bool(given.get("use_cpu")) or not has_gpu,
        "dataloader_pin_memory": has_gpu and given.get("dataloader_pin_memory", True),
        "do_eval": _evaluates(settings),
    }
    if _evaluates(settings) and "eval_strategy" not in settings.given:
        options["eval_strategy"] = "epoch"
    _compile_for_every_length(settings)
    try:
        with warnings.catch_warnings():  # which of its keys transformers renames is ours to follow
            warnings.simplefilter("ignore", FutureWarning)
            args = SFTConfig(**options)
    except (ValueError, TypeError) as error:
        raise wrong_config(error) from error
    if given.get("fsdp") and args.world_size == 1:
        raise ConfigError(
            f"Config key 'fsdp' is {show(given['fsdp'])}, and this run is one process, which has nobody to share the model with. "
            "Drop the key, or request more GPUs."
        )
    return args


def _compile_for_every_length(settings: Settings) -> None:
    """Batches differ in length, and by accelerate's default each length would be compiled anew (`dynamic=False`)."""
    asked = (settings.values.get("accelerate_launch_args") or {}).get("dynamo_use_dynamic")
    if asked is None and any(settings.values.get(key) for key in _COMPILES):
        os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "True"


def _evaluates(settings: Settings) -> bool:
    return bool(settings.values.get("validation_data_path")) or settings.values.get("eval_strategy") not in (
        None,
        "no",
    )


def effective_distributed(engine: Any) -> Distributed:
    """What the ranks really run: accelerate turns FSDP into DDP on CPU without a word."""
    accelerator = engine.accelerator
    if accelerator.distributed_type == DistributedType.FSDP:
        version = getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1)
        return "fsdp2" if version == 2 else "fsdp1"  # noqa: PLR2004
    return "ddp" if accelerator.num_processes > 1 else "none"
