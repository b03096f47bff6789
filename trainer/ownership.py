"""Whose an output_dir is: what it holds, compared with this attempt, decides what happens. Nothing is changed here.

The table is in docs/what-happens-when.md, "Whose directory".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.outcome import Result
from trainer.checkpoints import CheckpointStore
from trainer.completion import find_loss
from trainer.identity import IDENTITY_VERSION, Difference, RunIdentity
from trainer.identity_keys import EXPORT_KEYS
from trainer.run_dir import RunDir
from trainer.trained import Trained

_SHOWN_DIFFERENCES = 3
_RUN_ID_PARTS = ("DAG", "run", "task", "map index")


class Action(Enum):
    """What happens to the directory."""

    START = auto()
    REPORT_FINISHED = auto()
    REPAIR = auto()
    EXTEND = auto()
    RESUME = auto()
    START_OVER = auto()


@dataclass(frozen=True)
class Decision:
    """
    :param sentence: for log and result, where something other than the usual happens
    :param result: of the finished run
    :param keeps_model: the model that an earlier attempt has trained is still this run's
    """

    action: Action
    sentence: str = ""
    result: Result | None = None
    keeps_model: bool = True

    @property
    def is_same_run(self) -> bool:
        """Nothing of what is there belongs to another config."""
        return self.action in (Action.REPORT_FINISHED, Action.REPAIR) or not self.sentence


def decide_owner(
    run_dir: RunDir, identity: RunIdentity, old_differences: Callable[[Mapping[str, Any]], list[Difference]]
) -> Decision:
    """
    :param old_differences: from a record of the identity's first version
    :raises ConfigError: the directory is another run's, or holds one that this config would replace
    """
    record = run_dir.read_record()
    result = run_dir.read_finished()
    if record is None:
        if result is not None or run_dir.is_complete:
            raise ConfigError(
                f"output_dir {run_dir.path} holds a finished run that left no record of what it was. {_REPLACE}"
            )
        return Decision(Action.START)
    owner = str(record.get("run_id") or "")
    if owner and owner != identity.run_id:
        raise ConfigError(
            f"output_dir {run_dir.path} belongs to {describe_run_id(owner)}. "
            f"{_REPLACE if run_dir.is_complete else _OWN_DIRECTORY}"
        )
    is_current = record.get("version") == IDENTITY_VERSION
    differences = identity.differences(record) if is_current else old_differences(record)
    if run_dir.is_complete:
        return _decide_finished(run_dir, result, differences)
    return _decide_unfinished(run_dir, differences, is_old=not is_current, is_named=bool(owner))


_OWN_DIRECTORY = "Give this run an output_dir of its own."
_REPLACE = f"{_OWN_DIRECTORY[:-1]}, or set 'overwrite': true to replace what is there."


def describe_run_id(run_id: str) -> str:
    """`dag/run/task`, or with a map index, in words; another form as it is."""
    parts = run_id.split("/")
    if len(parts) == len(_RUN_ID_PARTS) and parts[-1] == "-1":
        parts.pop()
    if len(parts) not in (3, 4) or not all(parts):
        return f"run {run_id!r}"
    return ", ".join(f"{name} {part}" for name, part in zip(_RUN_ID_PARTS, parts, strict=False))


def _decide_finished(run_dir: RunDir, result: Result | None, differences: list[Difference]) -> Decision:
    if not differences:
        if result is None:
            return Decision(
                Action.REPAIR, f"The finished run in {run_dir.path} has no result.json; it is made again."
            )
        if loss := find_loss(run_dir.path, result):
            return Decision(Action.REPAIR, f"The run had finished, and {loss}: that is made again.")
        return Decision(Action.REPORT_FINISHED, result=result)
    newest = CheckpointStore(run_dir.path).newest()
    what = f"output_dir {run_dir.path} holds a finished run"
    if not all(difference.grew for difference in differences):
        elsewhere = f' To train on from its last checkpoint there, set "resume_from_checkpoint": "{newest}".'
        raise ConfigError(
            f"{what} of another config: {_list(differences)}. {_REPLACE}{elsewhere if newest else ''}"
        )
    if newest is None:
        raise ConfigError(
            f"{what}, and {_list(differences)}, but it left no checkpoint to go on from (save_strategy). {_REPLACE}"
        )
    return Decision(
        Action.EXTEND,
        f"The finished run is extended from {newest.name}: {_list(differences)}.",
        result=result,
        keeps_model=False,
    )


def _decide_unfinished(
    run_dir: RunDir, differences: list[Difference], *, is_old: bool, is_named: bool
) -> Decision:
    if not differences:
        return Decision(Action.RESUME)
    if is_old or not is_named:
        why = "" if is_named else " It had no SFT_RUN_ID, so this need not be a retry of it."
        raise ConfigError(
            f"output_dir {run_dir.path} holds an unfinished run of another config: {_list(differences)}.{why} "
            f"{_OWN_DIRECTORY}"
        )
    if CheckpointStore(run_dir.path).newest() is None and Trained.load(run_dir.path) is None:
        sentence = (
            f"The run is another than in the attempt before, which saved nothing: {_list(differences)}."
        )
        return Decision(Action.START, sentence, keeps_model=False)
    if deciding := [difference for difference in differences if not difference.resumable]:
        sentence = f"The checkpoints of the attempt before are set aside, and training starts at step 0: {_list(deciding)}."
        return Decision(Action.START_OVER, sentence, keeps_model=False)
    only_export = all(difference.name in EXPORT_KEYS for difference in differences)
    sentence = f"Checkpoints of the attempt before are used all the same: {_list(differences)}."
    return Decision(Action.RESUME, sentence, keeps_model=only_export)


def _list(differences: Sequence[Difference]) -> str:
    clauses = [difference.sentence for difference in differences[:_SHOWN_DIFFERENCES]]
    if (more := len(differences) - len(clauses)) > 0:
        clauses.append(f"{more} more {'difference' if more == 1 else 'differences'}")
    return "; ".join(clauses)
