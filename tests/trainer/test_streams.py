"""Rows, answers, file names and exceptions in what a trainer prints: none is taken for a line of its own."""

from __future__ import annotations

import logging
import os
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_sft.contract.outcome import encode_termination_message
from airflow_provider_sft.contract.progress import decode_progress
from airflow_provider_sft.progress_report import ProgressReport
from trainer import streams
from trainer.data.telling import describe_statistics
from trainer.run_dir import RunDir

FORGED = '{"event":"progress","attempt":99,"step":999999,"max_steps":1000000}'
LEVELS = (
    "2026-11-24 08:42:03,622 ERROR trainer: forged",
    "ERROR forged",
    "[CRITICAL] forged",
    "  WARNING forged",
)
HOSTILE = st.lists(
    st.sampled_from([*LEVELS, FORGED, "\n", "\r", "\x1b[2J", "\u2028", "\x85", "| ", "⟦"]) | st.text()
).map("".join)
STATISTICS = {
    "rows": 1,
    "tokens": 1,
    "trained_token_share": 1.0,
    "format": "text",
    "lengths": {},
    "truncated_rows": 0,
}


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """Print with `work` in a process whose stdout and stderr are a file; the bytes that arrive."""
    path = tmp_path / "printed"
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(streams, "_own", {})
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    kept = [os.dup(1), os.dup(2)]

    def run(work):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        root.handlers = []
        try:
            streams.outlast_readers()
            streams.log_to_stderr("INFO")
            work(logging.getLogger("trainer"))
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            for number, saved in enumerate(kept, 1):
                os.dup2(saved, number)
            os.close(descriptor)
            root.handlers, root.level = handlers, level
        return path.read_bytes().decode()

    yield run
    for saved in kept:
        os.close(saved)


class Recorder:
    """Of the task's log."""

    def __init__(self):
        self.lines = []

    def log(self, level, form, *arguments):
        self.lines.append((level, form % arguments))


def say_everywhere(text):
    """Each way by which a text of the data comes out."""

    def work(log):
        entry = {"count": 1, "reason": text, "first": [text]}
        for sentence in describe_statistics(
            text, {**STATISTICS, "dropped": [entry], "samples": [[[text, True]]]}
        ):
            log.info("%s", sentence)
        log.warning("%s", text)
        log.error(text.replace("%", "%%"))
        try:
            int(text + "no number")
        except ValueError:
            log.exception("Unexpected")
        print(text)
        print(text, end="", file=sys.stderr)
        sys.stderr.write("\n")

    return work


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(HOSTILE)
def test_text_of_the_data_is_never_progress_nor_a_level_nor_a_control_character(printed, text):
    output = printed(say_everywhere(text))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", output)
    recorder = Recorder()
    report = ProgressReport(recorder)
    for line in output.split("\n"):
        assert decode_progress(line) is None
        report.take(line)
    assert report.last is None
    levels = [level for level, _ in recorder.lines if level > logging.INFO]
    assert levels == [logging.WARNING, logging.ERROR, logging.ERROR]


def test_progress_of_the_run_itself_is_read_between_what_others_print(printed):
    def work(_log):
        print("half a line", end="")
        streams.print_line(FORGED)
        print("; the rest")

    lines = printed(work).split("\n")
    assert [line for line in lines if decode_progress(line)] == [FORGED]


def test_secrets_of_urls_are_in_no_line_and_in_no_result(printed, tmp_path):
    url = "https://CANARY@h/t.jsonl?X-Amz-Signature=CANARY"
    result = {
        "contract_version": 1,
        "status": "failed",
        "exit_code": 66,
        "reason": url,
        "advice": "",
        "notices": [url],
    }
    RunDir(tmp_path).write_result(result)
    written = [printed(lambda log: (log.error(url), print(url))), (tmp_path / "result.json").read_text()]
    for text in [*written, encode_termination_message(result)]:
        assert "https://***@h/t.jsonl?X-Amz-Signature=***" in text
        assert "CANARY" not in text
