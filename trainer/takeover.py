"""An output_dir becomes this attempt's, as `ownership` has decided. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import Settings
from trainer.completion import read_trained, write_mark
from trainer.digests import Digests
from trainer.identity import RunIdentity
from trainer.ownership import Action, Decision
from trainer.resume_choice import asked_checkpoint
from trainer.run_dir import RunDir
from trainer.trained import Trained


@dataclass(frozen=True)
class Directory:
    """:param digests: of the files that `identity` names"""

    run_dir: RunDir
    identity: RunIdentity
    digests: Digests
    decision: Decision


def make_room(
    run_dir: RunDir, identity: RunIdentity, config: dict[str, Any], ask: Callable[[], Decision]
) -> Decision:
    """`overwrite`: what this very run has left stays, to go on from; all else goes.

    :param ask: for the decision without `overwrite`
    """
    with contextlib.suppress(ConfigError):
        decision = ask()
        if decision.is_same_run:
            return decision
    run_dir.make_room(config, [Path(entry["path"]) for entry in identity.files.values()])
    return Decision(Action.START)


def take_directory(directory: Directory, settings: Settings) -> int:
    """Do what was decided, and return the number of this attempt.

    Whatever an end in the middle of this leaves is decided upon in the same way again.
    """
    run_dir, decision = directory.run_dir, directory.decision
    if decision.action is Action.REPAIR and (trained := read_trained(run_dir.path)):
        trained.write(run_dir.path)
    if decision.action is Action.EXTEND and decision.result:
        run_dir.keep_result(decision.result)
    if not decision.keeps_model:
        Trained.forget(run_dir.path)
    if decision.action is Action.START_OVER and isinstance(asked_checkpoint(settings), bool):
        run_dir.set_aside()
    if not decision.keeps_model and decision.action in (Action.START, Action.START_OVER):
        run_dir.drop_records_of_training()
    number = run_dir.claim(directory.identity.as_record())
    directory.digests.write(run_dir.path)
    return number


def complete(run_dir: RunDir, result: Any) -> None:
    """The result, then the mark that says everything asked for is there."""
    run_dir.write_result(result)
    write_mark(run_dir.path, result)
    Trained.forget(run_dir.path)
    run_dir.drop_superseded()


def find_over(
    run_dir: RunDir, ask: Callable[[], Decision], settings: Settings, say: Callable[[str], None]
) -> str | None:
    """Why a node other than the first has nothing to do: node 0 finds the same, and starts no rank to meet."""
    with contextlib.suppress(ConfigError):  # another run's: node 0 says so, or makes room
        decision = ask()
        if decision.action is Action.REPORT_FINISHED:
            return "This run finished before."
        trained = read_trained(run_dir.path) or Trained.load(run_dir.path)
        goes_on = asked_checkpoint(settings) is True and decision.keeps_model
        if goes_on and trained and trained.is_whole(say):
            return "The training was over before; node 0 does the rest."
    return None
