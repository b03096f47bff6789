import pytest

from airflow_provider_sft.contract.names import CONTRACT_VERSION
from airflow_provider_sft.links import ModelLink, ReportLink, TrackerLink, find_links
from airflow_provider_sft.operators import LocalSFTTrainerOperator, SFTTrainerOperator

CONFIG = {"output_dir": "/data/output/run 1"}
URL = "https://files.example.com/{path}"


def result(**fields):
    base = {
        "contract_version": CONTRACT_VERSION,
        "status": "succeeded",
        "exit_code": 0,
        "reason": "",
        "advice": "",
    }
    return {**base, "model_path": "/data/output/run 1/final", **fields}


def test_links_lead_to_where_the_volume_is_served():
    assert find_links(CONFIG, URL, result()) == {
        "Model": "https://files.example.com/data/output/run%201/final",
        "Report": "https://files.example.com/data/output/run%201/report.html",
    }


def test_links_are_not_there_without_artifacts_url():
    assert find_links(CONFIG, None, result()) == {}


def test_links_of_a_failed_run_do_not_promise_files():
    assert find_links(CONFIG, URL, result(status="failed")) == {}


def test_tracker_link_leads_to_the_run_and_before_there_is_one_to_the_server():
    config = {**CONFIG, "mlflow_tracking_uri": "http://mlflow:5000"}
    assert find_links(config, None, None) == {"Tracker": "http://mlflow:5000"}
    run = "http://mlflow:5000/#/experiments/1/runs/2"
    assert find_links(config, None, result(tracker_url=run)) == {"Tracker": run}


@pytest.mark.parametrize("uri", ["file:/mlruns", "sqlite:///x", "javascript:alert(1)"])
def test_tracker_link_is_never_anything_but_http(uri):
    assert find_links({**CONFIG, "mlflow_tracking_uri": uri}, None, None) == {}


@pytest.mark.parametrize("operator_class", [LocalSFTTrainerOperator, SFTTrainerOperator])
@pytest.mark.parametrize("link", [ReportLink(), ModelLink(), TrackerLink()])
def test_link_without_a_target_is_empty_and_no_error(operator_class, link):
    operator = operator_class(task_id="tune", config=CONFIG)
    operator.found_links = {}
    assert link.get_link(operator, ti_key=None) == ""
