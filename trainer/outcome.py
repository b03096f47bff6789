"""From how a run ended to the `Result` it leaves. Stdlib only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from airflow_provider_sft.contract.errors import InterruptedRunError, SFTError
from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.names import CONTRACT_VERSION
from airflow_provider_sft.contract.outcome import Result, is_result
from trainer.files import read_json


def failed_result(error: SFTError, **facts: Any) -> Result:
    """:param facts: fields of `Result` that are known all the same: step reached, last checkpoint, attempt"""
    return cast(
        "Result",
        {
            "contract_version": CONTRACT_VERSION,
            "status": "interrupted" if isinstance(error, InterruptedRunError) else "failed",
            "exit_code": int(error.exit_code),
            "reason": str(error.reason),
            "advice": error.advice,
            **facts,
        },
    )


def succeeded_result(reason: str, **facts: Any) -> Result:
    return cast(
        "Result",
        {
            "contract_version": CONTRACT_VERSION,
            "status": "succeeded",
            "exit_code": int(ExitCode.SUCCEEDED),
            "reason": reason,
            "advice": "",
            **facts,
        },
    )


def read_success(path: Path) -> Result | None:
    """The result of a run that succeeded; None for whatever else is in `path`."""
    result: object = read_json(path)
    is_ours = is_result(result) and result["status"] == "succeeded" and result["exit_code"] == 0
    return cast("Result", result) if is_ours else None


def interrupted_result(result: Result) -> Result:
    """A success that was told to stop: 0 would say that nobody had asked."""
    error = InterruptedRunError("Interrupted when everything was written; the next attempt finds the result.")
    return cast("Result", {**result, **failed_result(error)})
