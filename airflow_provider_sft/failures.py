"""How a run that did not succeed looks to Airflow: the exception decides about the retry and carries one sentence.

TrainingFailure
├── PermanentFailure (no retry): Config, Data, NotFound, Diverged, Export, AccessDenied, StorageFull, Memory, Launch
└── RetryableFailure (the retry resumes): Transient, Internal, LostRank, Hang, Interrupted, Locked,
    AcceleratorsMissing
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any, cast

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_sft.contract.errors import SFTError
from airflow_provider_sft.contract.exit_codes import Action, ExitCode
from airflow_provider_sft.contract.outcome import Result, decode_termination_message
from airflow_provider_sft.contract.plain_text import plain_lines, plain_text
from airflow_provider_sft.contract.progress import Progress

# The kubelet's and the shell's codes that a retry cannot change: cannot start, cannot execute, not found.
_UNSTARTABLE = {126: "cannot be executed", 127: "was not found", 128: "could not be started"}
# Codes below this are permanent unless Python or argparse made them (1, 2).
_FIRST_RETRYABLE = 128
_PYTHON_CODES = (1, 2)
_INTERRUPTING_SIGNALS = (signal.SIGTERM, signal.SIGKILL)
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class TrainingFailure(AirflowException):
    """A tuning task that did not succeed.

    :param sentence: what happened and what to do; terminal escapes and control characters are taken out, secrets
        of URLs masked
    :param result: what the trainer reported, where it could
    """

    def __init__(self, sentence: str, *, result: Result | None = None) -> None:
        super().__init__(plain_lines(clean_text(sentence)))
        self.result = result


class PermanentFailure(TrainingFailure, AirflowFailException):
    """It would fail again: Airflow does not retry."""


class RetryableFailure(TrainingFailure):
    """Airflow retries as far as `retries` goes, and the retry resumes from the newest valid checkpoint."""


class ConfigFailure(PermanentFailure):
    """The config is wrong."""


class DataFailure(PermanentFailure):
    """The data is wrong."""


class NotFoundFailure(PermanentFailure):
    """A path, model or data set does not exist."""


class DivergedFailure(PermanentFailure):
    """Loss, gradient or weights are not finite."""


class ExportFailure(PermanentFailure):
    """The requested export is not possible for this adapter."""


class AccessDeniedFailure(PermanentFailure):
    """A gated model, a 401 or 403, a file permission."""


class StorageFullFailure(PermanentFailure):
    """A volume or the node's ephemeral storage is full."""


class MemoryFailure(PermanentFailure):
    """The accelerator's or the host's memory is not enough."""


class LaunchFailure(PermanentFailure):
    """The trainer cannot start: image, command, missing Secret, ConfigMap or volume."""


class TransientFailure(RetryableFailure):
    """I/O or network."""


class InternalFailure(RetryableFailure):
    """An unknown error of the trainer."""


class LostRankFailure(RetryableFailure):
    """A rank or the rendezvous was lost."""


class HangFailure(RetryableFailure):
    """No step for the configured time."""


class InterruptedFailure(RetryableFailure):
    """Preempted, drained, killed or timed out."""


class LockedFailure(RetryableFailure):
    """Another run holds output_dir."""


class AcceleratorsMissingFailure(RetryableFailure):
    """The pod sees fewer GPUs than it requested."""


FAILURES: dict[ExitCode, type[TrainingFailure]] = {
    ExitCode.CONFIG: ConfigFailure,
    ExitCode.DATA: DataFailure,
    ExitCode.NOT_FOUND: NotFoundFailure,
    ExitCode.DIVERGED: DivergedFailure,
    ExitCode.EXPORT: ExportFailure,
    ExitCode.ACCESS_DENIED: AccessDeniedFailure,
    ExitCode.TRANSIENT: TransientFailure,
    ExitCode.STORAGE_FULL: StorageFullFailure,
    ExitCode.OUT_OF_MEMORY: MemoryFailure,
    ExitCode.INTERNAL: InternalFailure,
    ExitCode.LOST_RANK: LostRankFailure,
    ExitCode.HANG: HangFailure,
    ExitCode.INTERRUPTED: InterruptedFailure,
    ExitCode.LOCKED: LockedFailure,
    ExitCode.ACCELERATORS_MISSING: AcceleratorsMissingFailure,
}


def failure_of_error(error: SFTError) -> TrainingFailure:
    """What the contract found wrong before a trainer was started."""
    return FAILURES[error.exit_code](_join(error.reason, error.advice))


def failure_of_exit(
    exit_code: int, result: Result | None, *, progress: Progress | None = None
) -> TrainingFailure | None:
    """The failure an exit code stands for, or None for a success that left a result.

    :param exit_code: as a shell shows it: 128 + N for signal N
    :param progress: the last one seen, for a trainer that could not report how far it came
    """
    if exit_code == ExitCode.SUCCEEDED:
        return None if result and result["status"] == "succeeded" else _failure_without_result()
    failure = _own_class(exit_code) or _foreign_class(exit_code)
    reason = result["reason"] if result and result["reason"] else describe_exit_code(exit_code)
    advice = result["advice"] if result and result["advice"] else _own_advice(exit_code)
    return failure(_join(reason, describe_position(result, progress), advice), result=result)


def describe_exit_code(exit_code: int) -> str:
    if exit_code in _UNSTARTABLE:
        return (
            f"The trainer {_UNSTARTABLE[exit_code]} (exit code {exit_code}). Check the image and its command."
        )
    signal_name = _signal_name(exit_code)
    if signal_name:
        return f"The trainer was ended by {signal_name} (exit code {exit_code}) and left no result."
    return (
        f"The trainer ended with exit code {exit_code} and left no result. Its last lines stand in this log."
    )


def describe_position(result: Result | None, progress: Progress | None = None) -> str:
    """`It reached step 120 of 400; its last checkpoint is step 100.`, or as much of it as is known."""
    step = max(result.get("steps", 0) if result else 0, progress["step"] if progress else 0)
    if not step:
        return ""
    of_max = f" of {progress['max_steps']}" if progress and progress.get("max_steps") else ""
    checkpoint = result.get("last_checkpoint_step") if result else None
    saved = f"; its last checkpoint is step {checkpoint}" if checkpoint else ""
    return f"It reached step {step}{of_max}{saved}."


def clean_text(text: str) -> str:
    """Without terminal escapes, control characters and secrets of URLs, so that a log viewer shows what was meant."""
    return plain_text(_CONTROLS.sub("", _ESCAPES.sub("", text)))


def clean_result(message: str | None) -> Result | None:
    """The result in a termination message, its texts cleaned; None for anything that is not one."""
    result = decode_termination_message(message)
    if result is None:
        return None
    return cast("Result", _clean(result))


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _clean(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_clean(member) for member in value]
    return clean_text(value) if isinstance(value, str) else value


def _failure_without_result() -> InternalFailure:
    return InternalFailure(
        "The trainer ended with exit code 0 but left no result, so whether there is a model is not known. "
        "Use the trainer image of this provider, and leave the container's terminationMessagePath alone."
    )


def _own_class(exit_code: int) -> type[TrainingFailure] | None:
    return FAILURES.get(ExitCode(exit_code)) if exit_code in FAILURES else None


def _foreign_class(exit_code: int) -> type[TrainingFailure]:
    if exit_code in _UNSTARTABLE:
        return LaunchFailure
    if exit_code - _FIRST_RETRYABLE in _INTERRUPTING_SIGNALS:
        return InterruptedFailure
    retryable = exit_code >= _FIRST_RETRYABLE or exit_code in _PYTHON_CODES
    return InternalFailure if retryable else LaunchFailure


def _own_advice(exit_code: int) -> str:
    if exit_code in FAILURES:
        return ExitCode(exit_code).advice
    return "The retry resumes." if issubclass(_foreign_class(exit_code), RetryableFailure) else ""


def _signal_name(exit_code: int) -> str | None:
    try:
        return signal.Signals(exit_code - _FIRST_RETRYABLE).name
    except ValueError:
        return None


def _join(*sentences: str) -> str:
    return " ".join(sentence.strip() for sentence in sentences if sentence)


assert all(  # noqa: S101  # the two maps agree on what is retried
    issubclass(failure, PermanentFailure) == (code.action is Action.FAIL)
    for code, failure in FAILURES.items()
)
