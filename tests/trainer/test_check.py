"""`python -m trainer check`, and arguments that nobody takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trainer.__main__ import dispatch


def run_trainer_command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "trainer", *arguments]
    # Measuring coverage would import before the trainer does.
    env = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")} | env
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def checked() -> subprocess.CompletedProcess[str]:
    """It says on stderr what it imports, one after the other."""
    return run_trainer_command("check", PYTHONPROFILEIMPORTTIME="1")


def test_check_of_a_whole_environment_ends_with_zero(checked):
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "subject", ["versions: torch 2.", "GPUs: ", "FSDP: FSDP2 shards over", "vLLM export: "]
)
def test_check_names(checked, subject):
    assert f"ok    {subject}" in checked.stdout


def test_check_where_torch_does_not_load_fails_and_names_the_cause(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    checked = run_trainer_command("check", PYTHONPATH=f"{tmp_path}:.")
    assert checked.returncode == 203
    assert "FAIL  GPUs: ImportError: libcudart.so.13" in checked.stdout


def test_argument_that_nobody_takes_is_refused_with_what_to_do(capfd):
    assert dispatch(["bash"]) == 64
    said = capfd.readouterr().err
    assert "Unknown arguments 'bash'" in said
    assert "--entrypoint bash" in said


def test_handler_of_signals_stands_before_anything_else_is_imported(checked):
    """Until then SIGTERM ends Python as it ends any process: the window is the interpreter's own start."""
    loaded = [
        line.rsplit("|", 1)[1].strip() for line in checked.stderr.splitlines() if "import time:" in line
    ]
    before = set(loaded[: loaded.index("trainer.stop")])
    assert not before & {"logging", "json", "trainer.parent", "airflow_provider_sft.contract.codec", "yaml"}
    assert {"logging", "json", "trainer.parent"} <= set(loaded)
