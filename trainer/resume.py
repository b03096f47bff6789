"""What a run should say, or refuse, before it goes on from a checkpoint that another set of processes wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import IterableDataset

from airflow_provider_sft.contract.errors import ConfigError

_START_AGAIN = "Run with the processes of before, or set 'resume_from_checkpoint': false to start again."


def check_resume(engine: Any, checkpoint: str | None, *, say: Callable[[str], None]) -> None:
    """
    :param engine: the Engine that is about to train
    :param say: for people
    :raises ConfigError: the checkpoint cannot be read by this way of distributing
    """
    if checkpoint is None:
        return
    path = Path(checkpoint)
    _check_sharding(engine, path)
    before, now = count_processes(path), engine.args.world_size
    if before not in (0, now):
        say(
            f"{path.name} was written by {_processes(before)} and this run has {_processes(now)}: weights, optimizer "
            f"and step go on. A step takes {now}/{before} of the rows of before, so the place in the data is another, "
            f"and the weights will not be those of an undisturbed run."
        )
    if isinstance(engine.train_dataset, IterableDataset) and not engine.place.is_skipped_to(path):
        say(f"The data is a stream: it is read again from its start up to the rows of {path.name}.")


def _check_sharding(engine: Any, checkpoint: Path) -> None:
    sharded, whole = checkpoint / "pytorch_model_fsdp_0", checkpoint / "pytorch_model_fsdp.bin"
    if engine.is_fsdp_enabled:
        wants_whole = "FULL" in str(engine.accelerator.state.fsdp_plugin.state_dict_type)
        expected, form = (whole, "FULL_STATE_DICT") if wants_whole else (sharded, "SHARDED_STATE_DICT")
        if not expected.exists():
            raise ConfigError(
                f"{checkpoint} holds no {expected.name}, which FSDP with {form} resumes from. {_START_AGAIN}"
            )
    elif sharded.exists() or whole.exists():
        raise ConfigError(
            f"{checkpoint} was written by FSDP and this run does not use it, so it cannot be read. {_START_AGAIN}"
        )


def count_processes(checkpoint: Path) -> int:
    """How many processes wrote `checkpoint`: each left its random state."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"
