import logging

import pytest

from airflow_provider_sft.progress_report import ProgressReport


@pytest.fixture
def told(caplog):
    """What the task's log has of the trainer's lines, with its level."""

    def take(*lines):
        report = ProgressReport(logging.getLogger("task"))
        with caplog.at_level(logging.DEBUG, logger="task"):
            for line in lines:
                report.take(line)
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    return take


def test_line_of_the_trainer_keeps_its_level_and_loses_its_second_time(told):
    line = "2026-11-24 08:42:03,622 WARNING trainer: 3 rows are longer than max_length and cut."
    assert told(line) == [("WARNING", "3 rows are longer than max_length and cut.")]


def test_line_of_a_part_of_the_trainer_is_told_likewise(told):
    assert told("2026-11-24 08:42:03,622 INFO trainer.parent: saving") == [("INFO", "saving")]


def test_line_of_another_program_stays_as_it_is(told):
    line = "2026-11-24 08:42:03,622 INFO other: 1"
    assert told(line, "NOISE trainer: 2") == [("INFO", line), ("INFO", "NOISE trainer: 2")]


def test_progress_is_told_once_however_often_it_comes(told):
    line = '{"event":"progress","attempt":1,"step":5,"max_steps":9,"epoch":1.0,"loss":1.5}'
    assert told(line, line) == [("INFO", "step 5/9 (55%)  loss 1.5")]


def test_terminal_escapes_are_not_told(told):
    assert told("\x1b[31mred\x1b[0m") == [("INFO", "red")]
