"""Imports go one way, each claim proven in a process of its own."""

import base64
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def find_imported(statement: str, *names: str, env: dict[str, str] | None = None) -> str:
    """Those of `names` that are loaded once `statement` ran, sorted, with spaces between."""
    code = f"import sys\n{statement}\nsys.stdout = sys.__stdout__\nprint('loaded:', *sorted(set(sys.modules) & set({names!r})))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()[-1].removeprefix("loaded:").strip()


@pytest.mark.parametrize(
    "module",
    ["airflow_provider_sft", "airflow_provider_sft.contract.validation", "airflow_provider_sft.cli"],
)
def test_module_without_airflow_or_torch_imports_neither(module):
    assert find_imported(f"import {module}", *HEAVY, "airflow", "kubernetes", "trainer") == ""


def test_package_itself_is_stdlib_only():
    third_party = ("yaml", "jinja2", "airflow_provider_sft.contract")
    assert find_imported("import airflow_provider_sft", *third_party) == ""


@pytest.mark.timeout(120)
def test_local_operator_imports_no_torch_and_no_trainer():
    statement = "from airflow_provider_sft.operators import LocalSFTTrainerOperator"
    assert find_imported(statement, *HEAVY, "trainer", "kubernetes") == ""


@pytest.mark.timeout(120)
def test_kubernetes_operator_imports_no_torch_and_no_trainer():
    statement = "from airflow_provider_sft.operators import SFTTrainerOperator"
    assert find_imported(statement, *HEAVY, "trainer") == ""


def test_trainer_parent_imports_no_airflow_and_no_torch():
    assert find_imported("import trainer.__main__", *HEAVY, "airflow") == ""


def test_wrong_config_ends_64_without_torch():
    encoded = base64.b64encode(b'{"learning_rte": 1}').decode()
    statement = "from trainer.__main__ import main\nassert main() == 64"
    env = {"SFT_TRAINER_CONFIG_JSON_ENV_VAR": encoded}
    assert find_imported(statement, *HEAVY, "airflow", env=env) == ""
