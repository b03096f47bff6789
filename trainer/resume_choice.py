"""Which checkpoint an attempt goes on from. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError, NotFoundError
from airflow_provider_sft.contract.settings import Settings
from trainer.checkpoint_fit import find_misfit
from trainer.checkpoints import CheckpointStore, find_flaw
from trainer.run_dir import RunDir


def asked_checkpoint(settings: Settings) -> bool | Path:
    """`resume_from_checkpoint`: True, also where it is unset, is the newest whole one, False none."""
    asked = settings.values.get("resume_from_checkpoint")
    if asked in (False, "false", "False"):
        return False
    return True if asked in (None, True, "true", "True") else Path(asked)


def choose_checkpoint(
    settings: Settings, run_dir: RunDir, facts: Mapping[str, Any], say: Callable[[str], None]
) -> Path | None:
    """
    :param facts: of this run, as `checkpoint_fit.describe_run` gives them
    :raises NotFoundError: the one that the config names is damaged, or not there
    :raises ConfigError: it is of another base model or another way of tuning
    """
    asked = asked_checkpoint(settings)
    values = settings.values
    subfolder = str((values.get("model_init_kwargs") or {}).get("subfolder") or "")
    model = Path(str(values["model_name_or_path"]), subfolder)
    if asked is True:
        return _newest_of_this_run(run_dir, facts, model, say)
    if asked is False:
        return None
    if flaw := find_flaw(asked):
        raise NotFoundError(
            f"resume_from_checkpoint {str(asked)!r} cannot be used: {flaw}. Name a whole checkpoint."
        )
    if misfit := find_misfit(asked, facts, model):
        raise ConfigError(
            f"resume_from_checkpoint {str(asked)!r} cannot be used: {misfit}. Name a checkpoint of this model and "
            "this peft_method."
        )
    return asked


def _newest_of_this_run(
    run_dir: RunDir, facts: Mapping[str, Any], model: Path, say: Callable[[str], None]
) -> Path | None:
    store = CheckpointStore(run_dir.path)
    while checkpoint := store.newest_valid(say):
        misfit = find_misfit(checkpoint, facts, model)
        if misfit is None:
            return checkpoint
        # Left in its place it would count as the newest one, for which this run's own are dropped.
        say(f"Set aside {checkpoint.name}: {misfit}.")
        run_dir.set_aside(checkpoint)
    return None
