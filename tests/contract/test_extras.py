"""A key that needs an optional package names the extra to install."""

from __future__ import annotations

import pytest

from airflow_provider_sft.contract.extras import find_missing_extras


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"trackers": ["file_logger", "mlflow"]},
            (
                "Config key 'trackers' is [\"file_logger\", \"mlflow\"], which needs the module 'mlflow', and it is not "
                "installed. Install it with pip install 'airflow-provider-sft[mlflow]', or change the key."
            ),
        ),
        (
            {"bnb_qlora": ["nf4"]},
            (
                "Config key 'bnb_qlora' is [\"nf4\"], which needs the module 'bitsandbytes', and it is not installed. "
                "Install it with pip install 'airflow-provider-sft[bitsandbytes]', or change the key."
            ),
        ),
        (
            {"attn_implementation": "flash_attention_2"},
            (
                "Config key 'attn_implementation' is 'flash_attention_2', which needs the module 'flash_attn', and it is "
                "not installed. Install it with pip install 'airflow-provider-sft[flash-attn]', or change the key."
            ),
        ),
        (
            {"use_liger_kernel": True},
            (
                "Config key 'use_liger_kernel' is true, which needs the module 'liger_kernel', and it is not installed. "
                "Install it with pip install 'airflow-provider-sft[liger]', or change the key."
            ),
        ),
    ],
)
def test_find_missing_extras_names_the_extra(values, sentence):
    assert find_missing_extras(values, lambda _: False) == [sentence]


def test_find_missing_extras_installed_or_not_asked_for_is_silent():
    assert find_missing_extras({"trackers": ["mlflow"]}, lambda _: True) == []
    plain = {"trackers": ["file_logger"], "bnb_qlora": None, "use_liger_kernel": False, "optim": "sgd"}
    assert find_missing_extras(plain, lambda _: False) == []


def test_find_missing_extras_looks_for_the_module_without_importing_it():
    assert find_missing_extras({"optim": "adamw_torch"}) == []
    assert "no_such" not in str(find_missing_extras({"trackers": ["aim"]}))
