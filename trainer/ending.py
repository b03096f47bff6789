"""How a process ends: always with a code of the table, whatever was raised, and whatever reads its output. Stdlib only."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from airflow_provider_sft.contract.exit_codes import ExitCode, as_exit_code
from trainer.failures import classify
from trainer.rank import RankChannel
from trainer.stop import Interrupted


def end_with(work: Callable[[], int]) -> NoReturn:
    """Run `work`, and end this process with its code.

    Not by sys.exit: a flush that fails as the interpreter shuts down makes 120 of any code, and in a rank torch's atexit
    handlers wait for ranks that may be gone.
    """
    try:
        code = as_exit_code(work())
    except SystemExit as error:
        code = as_exit_code(error.code or 0)
    except (KeyboardInterrupt, Interrupted):
        code = ExitCode.INTERRUPTED
    except BaseException as error:  # noqa: BLE001  # there is nothing above
        code = _code_of(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _code_of(error: BaseException) -> ExitCode:
    with contextlib.suppress(Exception):
        failure = classify(error, model="the model")
        if failure.exit_code is ExitCode.INTERNAL:
            traceback.print_exception(error)
        sys.stderr.write(f"{failure.reason} (exit code {int(failure.exit_code)}) {failure.advice}\n")
        return failure.exit_code
    return ExitCode.INTERNAL


def report_failed_start() -> None:
    """From here on a rank that cannot import its libraries (no memory for them, a file that is gone) reports why."""
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    failure = classify(error.with_traceback(trace), model="the model")
    with contextlib.suppress(Exception):
        RankChannel.open(os.environ).report_error(failure)
    if failure.exit_code is ExitCode.INTERNAL:
        sys.__excepthook__(kind, error, trace)
    os._exit(failure.exit_code)
