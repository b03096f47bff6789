"""Code that comes with a model: whoever writes the DAG gives leave, a config alone cannot."""

from __future__ import annotations

import json

import pytest

from airflow_provider_sft import failures
from airflow_provider_sft.contract.names import ALLOW_REMOTE_CODE_ENV_VAR
from tests.operators.task import run
from tests.operators.test_local import CONFIG, make
from tests.operators.test_pod import SEED_CONFIG, SEED_POD, base, build

TRUSTING = {**SEED_CONFIG, "trust_remote_code": True}


def variables(pod) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in base(pod)["env"] if "value" in variable}


def test_pod_gets_leave_from_the_operator_alone():
    pod = build(**{**SEED_POD, "config": TRUSTING, "allow_remote_code": True})
    assert variables(pod)[ALLOW_REMOTE_CODE_ENV_VAR] == "true"
    assert ALLOW_REMOTE_CODE_ENV_VAR not in variables(build(**SEED_POD))


def test_pod_of_a_config_that_trusts_without_leave_is_refused():
    with pytest.raises(failures.ConfigFailure, match="set allow_remote_code=True on the operator"):
        build(**{**SEED_POD, "config": TRUSTING})


def test_local_trainer_gets_leave_from_the_operator_alone(tmp_path):
    seen = []
    for allowed in (True, False):
        record = tmp_path / str(allowed)
        operator = make(STAND_IN_RECORD=str(record))
        operator.allow_remote_code = allowed
        run(operator)
        seen.append(json.loads(record.read_text())["env"])
    assert [ALLOW_REMOTE_CODE_ENV_VAR in env for env in seen] == [True, False]


def test_local_run_of_a_config_that_trusts_without_leave_is_refused():
    with pytest.raises(failures.ConfigFailure, match="set allow_remote_code=True on the operator"):
        run(make({**CONFIG, "trust_remote_code": True}))
