"""However a trainer process ends, its exit code is one of the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from airflow_provider_sft.contract.exit_codes import ExitCode, as_exit_code

# None of these starts a rank: the config is wrong, and the code is to be 64 whatever becomes of the output.
SHELLS = {
    "stdout is closed": 'exec "$@" >&-',
    "stderr is closed": 'exec "$@" 2>&-',
    "all of them are closed": 'exec "$@" <&- >&- 2>&-',
    "stdout is on a full device": 'exec "$@" >/dev/full',
    "stderr is on a full device": 'exec "$@" 2>/dev/full',
    "both are on a full device": 'exec "$@" >/dev/full 2>&1',
    "LOG_LEVEL is none": 'LOG_LEVEL=LOUD exec "$@"',
    "LOG_LEVEL is empty": 'LOG_LEVEL= exec "$@"',
    "there is no HOME": 'unset HOME; exec "$@"',
    "TMPDIR does not exist": 'TMPDIR=/nowhere exec "$@"',
    "TMPDIR is too long": 'TMPDIR=/tmp/$(printf %5000s | tr " " x) exec "$@"',
}


def start(shell: str, tmp_path, **env: str) -> subprocess.CompletedProcess:
    argv = ["sh", "-c", shell, "sh", sys.executable, "-P", "-m", "trainer"]
    message = {"TERMINATION_LOG_FILE": str(tmp_path / "message"), "SFT_TRAINER_CONFIG_JSON_ENV_VAR": "e30="}
    env = {**os.environ, **message, **env}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS)
def test_wrong_config_is_64_with_its_message_although(shell, tmp_path):
    ended = start(shell, tmp_path)
    assert ended.returncode == ExitCode.CONFIG
    assert json.loads((tmp_path / "message").read_text())["exit_code"] == ExitCode.CONFIG
    assert "Traceback" not in ended.stderr


def test_log_level_that_is_none_is_one_sentence(tmp_path):
    ended = start(SHELLS["LOG_LEVEL is none"], tmp_path)
    assert ended.stderr.count("LOG_LEVEL is 'LOUD', which is not a level, so INFO is used.") == 1


@pytest.mark.parametrize("place", ["/dev/full", "/nowhere/message", "."])
def test_termination_message_that_cannot_be_written_changes_no_code(place, tmp_path):
    assert start('exec "$@"', tmp_path, TERMINATION_LOG_FILE=place).returncode == ExitCode.CONFIG


def test_deleted_working_directory_is_66_in_one_sentence(tmp_path):
    ended = start('mkdir "$TMP_PATH/gone"; cd "$TMP_PATH/gone"; rmdir "$TMP_PATH/gone"; exec "$@"', tmp_path, TMP_PATH=str(tmp_path))  # fmt: skip
    assert ended.returncode == ExitCode.NOT_FOUND
    assert "The working directory cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr


RAISED = {
    "raise RecursionError": ExitCode.INTERNAL,
    "raise MemoryError": ExitCode.OUT_OF_MEMORY,
    "raise KeyboardInterrupt": ExitCode.INTERRUPTED,
    "raise SystemExit(1)": ExitCode.INTERNAL,
    "raise SystemExit('words')": ExitCode.INTERNAL,
    "raise OSError(5, 'Input/output error')": ExitCode.TRANSIENT,
    "return '0'": ExitCode.INTERNAL,
    "return 255": ExitCode.INTERNAL,
    "return True": ExitCode.INTERNAL,
    "return 207": ExitCode.LOCKED,
    "import atexit; atexit.register(lambda: 1 / 0); return 0": ExitCode.SUCCEEDED,
    "import sys; sys.stdout = open('/dev/full', 'w'); print('x'); return 0": ExitCode.SUCCEEDED,
}


@pytest.mark.parametrize("body", RAISED, ids=RAISED)
def test_process_ends_with_a_code_of_the_table_whatever_its_work_does(body):
    code = f"from trainer.ending import end_with\ndef work():\n    {body}\nend_with(work)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == RAISED[body]


@pytest.mark.parametrize("value", [1, 2, 137, 255, -9, True, "0", 0.0, None, [0], 10**30])
def test_value_that_is_no_code_of_the_table_is_an_internal_error(value):
    assert as_exit_code(value) is ExitCode.INTERNAL


@pytest.mark.timeout(120)
def test_rank_without_memory_for_its_libraries_is_202_without_a_traceback(lora_config, run_trainer):
    limit = ["sh", "-c", 'ulimit -v 1200000; exec "$@"', "sh"]
    run = run_trainer(lora_config, code=ExitCode.OUT_OF_MEMORY, prefix=limit)
    assert "Traceback" not in run.stderr
