"""One map of exit codes: each has a class, an advice and one error, in the ranges of Kubeflow's ExitCode policy."""

from __future__ import annotations

import pytest

from airflow_provider_sft.contract import errors
from airflow_provider_sft.contract.exit_codes import Action, ExitCode

FAILURES = [code for code in ExitCode if code is not ExitCode.SUCCEEDED]
# FAULTS.md
ACTIONS = {
    64: "fail", 65: "fail", 66: "fail", 68: "fail", 69: "fail", 77: "fail",
    200: "retry", 201: "fail", 202: "fail", 203: "retry", 204: "retry", 205: "retry", 206: "retry", 207: "retry",
    208: "retry",
}  # fmt: skip
# Python's, argparse's, the shell's and the signals' own.
NEVER_OURS = {1, 2, 126, 127, 128, 134, 137, 139, 143}


def error_classes():
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.SFTError)
    ]


def test_exit_code_actions_are_those_of_the_table():
    assert {int(code): code.action.value for code in FAILURES} == ACTIONS


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
def test_exit_code_is_in_kubeflows_range_for_its_kind(code):
    assert code not in NEVER_OURS
    assert 1 <= code <= 254
    if code.action is Action.RETRY:
        assert code >= 128


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
def test_exit_code_advice_is_one_sentence(code):
    assert code.advice.endswith(".")


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
def test_exit_code_has_one_error_class(code):
    matching = [cls for cls in error_classes() if cls.exit_code is code and cls is not errors.SFTError]
    assert len(matching) == 1


def test_sft_error_own_advice_overrides_its_codes():
    assert errors.StorageFullError("full").advice == ExitCode.STORAGE_FULL.advice
    assert errors.StorageFullError("full", advice="Add 3 GiB.").advice == "Add 3 GiB."
    assert str(errors.StorageFullError("full")) == "full"
