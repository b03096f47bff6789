"""`python -m trainer`: the parent of a run. It never imports torch, and it is where exit codes are chosen.

read the config → lock output_dir → finished already? → start the ranks and watch → export → report → result
"""

from __future__ import annotations

from trainer.stop import StopRequest

_STOP = StopRequest()
if __name__ == "__main__":
    # Before all other imports: until then SIGTERM ends this process as it ends any, with nothing said.
    _STOP.install()

import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_provider_sft.contract.codec import read_config
from airflow_provider_sft.contract.errors import InternalError, InterruptedRunError, NotFoundError, SFTError
from airflow_provider_sft.contract.exit_codes import ExitCode, as_exit_code
from airflow_provider_sft.contract.names import (
    DEFAULT_TERMINATION_LOG,
    LOG_LEVEL_ENV_VAR,
    TERMINATION_LOG_ENV_VAR,
)
from airflow_provider_sft.contract.outcome import Result, encode_termination_message
from airflow_provider_sft.contract.validation import validate_config
from trainer.ending import end_with
from trainer.failures import classify
from trainer.outcome import failed_result, interrupted_result
from trainer.parent import tune
from trainer.scratch import private_scratch
from trainer.stop import Interrupted
from trainer.streams import log_to_stderr, outlast_readers

log = logging.getLogger("trainer")


def main(environ: Mapping[str, str] = os.environ) -> int:
    outlast_readers()
    log_to_stderr(environ.get(LOG_LEVEL_ENV_VAR, "INFO"))
    result = run(environ, _STOP)
    try:
        _log_end(result)
        _write_termination_message(environ, result)
    except Exception:  # the run is over, and its code stands
        log.exception("The end of the run could not be reported")
    return result["exit_code"]


def run(environ: Mapping[str, str], stop: StopRequest) -> Result:
    """The whole run; every way it can end is a result."""
    try:
        _check_working_directory()
        config = read_config(environ)
        validate_config(config)
        with private_scratch() as scratch:
            result = tune(config, environ, scratch, stop)
        return interrupted_result(result) if stop.count and result["status"] == "succeeded" else result
    except SFTError as error:
        return failed_result(error)
    except Interrupted:
        return failed_result(InterruptedRunError("Interrupted before the run began; nothing is lost."))
    except Exception as error:  # an unreadable model or a full volume is no internal error
        failure = classify(error, model="the model", places=_scratch_places())
        if isinstance(failure, InternalError):
            log.exception("Unexpected failure of the parent")
        return failed_result(failure)


def _check_working_directory() -> None:
    """Python, accelerate and torch ask for it as they start."""
    try:
        os.getcwd()  # noqa: PTH109  # of Path.cwd the same call
    except OSError as error:
        raise NotFoundError(
            f"The working directory cannot be used ({error.strerror}). Start the trainer in a directory that exists."
        ) from error


def _scratch_places() -> dict[str, str]:
    try:
        return {"TMPDIR": tempfile.gettempdir()}
    except OSError:
        return {}


def _log_end(result: Result) -> None:
    if result["status"] == "succeeded":
        log.info("Succeeded: %s", result.get("model_path") or result["reason"])
    else:
        code = as_exit_code(result["exit_code"])
        log.error("%s (exit code %d %s) %s", result["reason"], code, code.name, result["advice"])


def _write_termination_message(environ: Mapping[str, str], result: Result) -> None:
    path = Path(environ.get(TERMINATION_LOG_ENV_VAR) or DEFAULT_TERMINATION_LOG)
    try:
        # Outside a container there is no /dev/termination-log, and none should be made.
        if (TERMINATION_LOG_ENV_VAR not in environ and not path.exists()) or path.is_fifo():
            return
        path.write_text(encode_termination_message(result), encoding="ascii")
    except OSError as error:
        log.warning("The termination message could not be written to %s: %s.", path, error.strerror)


def dispatch(arguments: Sequence[str]) -> int:
    """The config comes from the environment; `check` is the one argument there is."""
    if not arguments:
        return main()
    _STOP.uninstall()  # nothing below has anything to save
    outlast_readers()
    if list(arguments) == ["check"]:
        from trainer.check import check

        return check()
    sys.stderr.write(
        f"Unknown arguments {' '.join(arguments)!r}. Give none, and the config in the environment, or `check`. "
        "For a shell in the image: docker run -it --entrypoint bash IMAGE\n"
    )
    return ExitCode.CONFIG


if __name__ == "__main__":
    end_with(lambda: dispatch(sys.argv[1:]))
