"""Buttons on the task's page: the report, the model, the tracker. One that leads nowhere is simply not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

from airflow_provider_sft.contract.names import REPORT_FILE
from airflow_provider_sft.contract.outcome import Result

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import TaskInstanceKey

LINKS_KEY = "sft_links"
# Where a config names the server of its tracker, for the time before there is a run on it.
_TRACKER_KEYS = ("mlflow_tracking_uri", "aim_url")


class _Link(BaseOperatorLink):
    """Airflow 3 asks the worker, which knows; Airflow 2 asks the web server, which looks at the XCom."""

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        if hasattr(operator, "found_links"):
            return str(operator.found_links.get(self.name, ""))
        links = XCom.get_value(key=LINKS_KEY, ti_key=ti_key) or {}
        return str(links.get(self.name, ""))


class ReportLink(_Link):
    name = "Report"


class ModelLink(_Link):
    name = "Model"


class TrackerLink(_Link):
    name = "Tracker"


def find_links(config: Mapping[str, Any], artifacts_url: str | None, result: Result | None) -> dict[str, str]:
    """
    :param artifacts_url: where the volume is served, with `{path}` for the path of a file on it
    :param result: None while the run goes on
    """
    links = {}
    known_url = result.get("tracker_url") if result else None
    if tracker_url := known_url or _tracker_server(config):
        links["Tracker"] = tracker_url
    if artifacts_url and result and result["status"] == "succeeded":
        if model_path := result.get("model_path"):
            links["Model"] = _serve(artifacts_url, model_path)
        if output_dir := config.get("output_dir"):
            links["Report"] = _serve(artifacts_url, f"{output_dir.rstrip('/')}/{REPORT_FILE}")
    return links


def _serve(artifacts_url: str, path: str) -> str:
    return artifacts_url.replace("{path}", quote(path.lstrip("/")))


def _tracker_server(config: Mapping[str, Any]) -> str:
    urls = (str(config.get(key, "")) for key in _TRACKER_KEYS)
    return next((url for url in urls if url.startswith(("http://", "https://"))), "")
