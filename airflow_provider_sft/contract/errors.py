"""The failures of a run, one class an exit code. The message is the sentence a person reads.

SFTError
├── ConfigError 64 · DataError 65 · NotFoundError 66 · DivergedError 68 · ExportError 69 · AccessDeniedError 77
└── TransientError 200 · StorageFullError 201 · MemoryExhaustedError 202 · InternalError 203 · LostRankError 204
    HangError 205 · InterruptedRunError 206 · LockedError 207 · AcceleratorsMissingError 208
"""

from __future__ import annotations

from typing import ClassVar

from airflow_provider_sft.contract.exit_codes import ExitCode


class SFTError(Exception):
    """A run that ended badly.

    :param reason: key or path with its value, what was expected, one action; one sentence a line
    :param advice: overrides the exit code's own advice
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL

    def __init__(self, reason: str, *, advice: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = self.exit_code.advice if advice is None else advice


class ConfigError(SFTError):
    exit_code = ExitCode.CONFIG


class DataError(SFTError):
    exit_code = ExitCode.DATA


class NotFoundError(SFTError):
    exit_code = ExitCode.NOT_FOUND


class DivergedError(SFTError):
    exit_code = ExitCode.DIVERGED


class ExportError(SFTError):
    exit_code = ExitCode.EXPORT


class AccessDeniedError(SFTError):
    exit_code = ExitCode.ACCESS_DENIED


class TransientError(SFTError):
    exit_code = ExitCode.TRANSIENT


class StorageFullError(SFTError):
    exit_code = ExitCode.STORAGE_FULL


class MemoryExhaustedError(SFTError):
    exit_code = ExitCode.OUT_OF_MEMORY


class InternalError(SFTError):
    exit_code = ExitCode.INTERNAL


class LostRankError(SFTError):
    exit_code = ExitCode.LOST_RANK


class HangError(SFTError):
    exit_code = ExitCode.HANG


class InterruptedRunError(SFTError):
    exit_code = ExitCode.INTERRUPTED


class LockedError(SFTError):
    exit_code = ExitCode.LOCKED


class AcceleratorsMissingError(SFTError):
    exit_code = ExitCode.ACCELERATORS_MISSING
