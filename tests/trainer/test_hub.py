"""T7: a model on the Hub that cannot be had: a real HTTP server on loopback refuses, or there is none."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from airflow_provider_sft.contract.errors import SFTError
from tests.trainer.here import train_here
from trainer.failures import classify


@pytest.fixture
def hub():
    """A Hub that answers every request with one status and the Hub's own error code."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(self.server.status)
            for name, value in self.server.headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_args):
            """pytest's output is no place for requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.status, server.headers = 404, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def config(lora_config):
    return {**lora_config, "model_name_or_path": "org/model"}


@pytest.mark.parametrize(
    ("status", "error_code", "code", "sentence"),
    [
        (403, "GatedRepo", 77, "Access to 'org/model' is denied by the Hub"),
        (404, "RepoNotFound", 66, "'org/model' is neither a directory nor on the Hub."),
    ],
)
def test_model_that_the_hub_does_not_give_has_its_exit_code(
    config, tmp_path, hub, monkeypatch, status, error_code, code, sentence
):
    hub.status, hub.headers = status, {"X-Error-Code": error_code}
    template = f"http://127.0.0.1:{hub.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    failure = fail(config, tmp_path)
    assert failure.exit_code == code
    assert failure.reason.startswith(sentence)


def fail(config: dict, tmp_path: Path) -> SFTError:
    """What the rank reports of the library's error."""
    with pytest.raises(OSError, match="Hub|huggingface|hf") as raised:
        train_here(config, tmp_path / "scratch")
    return classify(raised.value, model="org/model")


def test_model_of_the_hub_without_a_network_is_200(config, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    failure = fail(config, tmp_path)
    assert failure.exit_code == 200
    assert failure.reason == "'org/model' is no local directory and the Hub cannot be reached."
