"""docs/operators.md: its tables are the signatures, its first example is the seed's pod."""

import inspect
import re
import runpy
from pathlib import Path

import yaml

from airflow_provider_sft.config_field import PATH_KEYS
from airflow_provider_sft.contract.exit_codes import Action, ExitCode
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.operators import LocalSFTTrainerOperator, SFTTrainerOperator
from airflow_provider_sft.pod_outcome import to_plain
from tests.operators.test_pod import PODS, stable

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
TEXT = PAGE.read_text(encoding="utf-8")
POD, LOCAL = TEXT.split("## On the worker")
LOCAL = LOCAL.split("## The config is data")[0]
WORDS = {repr(PATH_KEYS): "those with paths", "()": "none", "<class 'inspect._empty'>": "required"}


def told(text):
    """Parameter to default, as the first two columns of the tables say it."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", text, re.MULTILINE)
    return {
        name: default.removeprefix("`").removesuffix("`")
        for names, default in rows
        for name in re.findall(r"\w+", names)
    }


def signature(operator_class):
    parameters = inspect.signature(operator_class.__init__).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return {p.name: WORDS.get(repr(p.default), repr(p.default).replace("'", '"')) for p in own}


def test_tables_of_the_pod_operator_are_its_signature():
    table = told(POD)
    assert table.pop("image") == "[sft] image` of Airflow's configuration"
    assert table == signature(SFTTrainerOperator)


def test_table_of_the_local_operator_is_its_signature():
    shared = {"templated_config_keys", "extra_config_keys", "allow_remote_code", "artifacts_url"}
    table, own = told(LOCAL), signature(LocalSFTTrainerOperator)
    assert table.keys() == own.keys()
    assert {name: table[name] for name in table if name not in shared} == {
        name: own[name] for name in own if name not in shared
    }


def test_first_example_is_the_seeds_pod(tmp_path):
    code = re.search(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL).group(1)
    path = tmp_path / "seed.py"
    path.write_text(code, encoding="utf-8")
    operator = runpy.run_path(str(path))["tune"]
    operator.namespace, operator.random_name_suffix = "default", False
    pod = stable(to_plain(operator.build_pod_request_obj(dry_run=True)))
    assert pod == yaml.safe_load((PODS / "seed.yaml").read_text())


def test_every_template_field_of_ours_is_told():
    own = set(SFTTrainerOperator.template_fields) & set(signature(SFTTrainerOperator)) - {"config"}
    sentence = re.search(r"\n\n(.*?) and the listed config\nkeys take templates", TEXT).group(1)
    assert set(re.findall(r"\w+", sentence)) == own


def test_every_field_of_the_result_is_told():
    table = TEXT.split("## What comes out")[1].split("##")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(Result.__annotations__) - {"contract_version"}


def test_every_exit_code_is_told_with_what_airflow_does():
    rows = re.findall(r"^\| ([\d, ]+) \| .* \| (fails|retries)", TEXT, re.MULTILINE)
    actions = {int(code): action for codes, action in rows for code in codes.split(",")}
    assert {code: actions[code] for code in ExitCode if code} == {
        code: "fails" if code.action is Action.FAIL else "retries" for code in ExitCode if code
    }
