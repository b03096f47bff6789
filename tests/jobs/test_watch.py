"""The parts of a watch that need no cluster: clocks, notes, limits, and a log's lines told once."""

import asyncio
import json
import logging

import pytest
from kubernetes.client import ApiException

from airflow_provider_sft import failures
from airflow_provider_sft.engines.registry import ENGINES
from airflow_provider_sft.engines.state import JobState, Stage
from airflow_provider_sft.job_clock import NOTE_ANNOTATION, Clock, Note, read_note
from airflow_provider_sft.job_feed import Wire
from airflow_provider_sft.job_log import NodeLog
from airflow_provider_sft.job_watch import JobWatch, Limits
from tests.jobs.states import pod

LIMITS = Limits(queue_s=100, startup_s=50, run_s=30, workload_s=10)


def test_clock_counts_running_over_restarts_and_the_wait_of_now():
    clock = Clock()
    for phase, now_s in [("queue", 0), ("start", 40), ("run", 50), ("queue", 70), ("run", 500), ("run", 506)]:
        clock.tick(phase, now_s)
    assert (clock.run_s, clock.waited_s) == (26, 6)


def test_note_survives_the_annotation_and_anything_else_is_no_note():
    note = Note(Clock("run", 10.0, 5.0, 12.0), {"uid": "2026-01-01T00:00:00.000000000Z"})
    text = json.dumps({"clock": vars(note.clock), "logs": note.logs})
    assert read_note({"metadata": {"annotations": {NOTE_ANNOTATION: text}}}) == note
    for text in ("", "[]", "null", "{", '{"clock": {"phase": "run", "x": 1}, "logs": {}}'):
        assert read_note({"metadata": {"annotations": {NOTE_ANNOTATION: text}}}) == Note()


def judge(stage, *, waited_s=0.0, run_s=0.0, engine="jobset", queue="lq", has_workload: bool | None = True):
    watch = JobWatch(ENGINES[engine], LIMITS, logging.getLogger("test"))
    phase = {Stage.QUEUED: "queue", Stage.REQUEUED: "queue", Stage.RUNNING: "run"}.get(stage, "start")
    watch.clock = Clock(phase, 0.0, run_s, waited_s)
    return watch.judge(JobState(stage, "the reason"), queue=queue, has_workload=has_workload)


@pytest.mark.parametrize(
    ("told", "failure", "words"),
    [
        ({"stage": Stage.QUEUED, "waited_s": 100}, failures.TransientFailure, "in the queue 'lq'"),
        ({"stage": Stage.REQUEUED, "waited_s": 100}, failures.TransientFailure, "Last: the reason."),
        ({"stage": Stage.STARTING, "waited_s": 50}, failures.TransientFailure, "startup_timeout_seconds"),
        ({"stage": Stage.RESTARTING, "waited_s": 50}, failures.TransientFailure, "took 50 s to start"),
        ({"stage": Stage.RUNNING, "run_s": 30}, failures.InterruptedFailure, "run_timeout_seconds allows"),
        (
            {"stage": Stage.QUEUED, "waited_s": 10, "has_workload": False},
            failures.LaunchFailure,
            "Kueue took no note of the JobSet within 10 s",
        ),
        (
            {"stage": Stage.QUEUED, "waited_s": 10, "has_workload": False, "engine": "pytorchjob"},
            failures.LaunchFailure,
            "'kubeflow.org/pytorchjob'",
        ),
    ],
)
def test_limit_that_is_reached_is_told_with_what_to_raise(told, failure, words):
    found = judge(**told)
    assert type(found) is failure
    assert words in str(found)


@pytest.mark.parametrize(
    "told",
    [
        {"stage": Stage.QUEUED, "waited_s": 99},
        {"stage": Stage.QUEUED, "waited_s": 99, "has_workload": None},
        {"stage": Stage.STARTING, "waited_s": 49},
        {"stage": Stage.RUNNING, "waited_s": 1e6, "run_s": 29},
    ],
)
def test_limit_that_is_not_reached_is_no_failure(told):
    assert judge(**told) is None


def test_node_that_waits_for_a_machine_counts_as_queueing_where_there_is_no_queue():
    for labels, phase in (({}, "queue"), ({"kueue.x-k8s.io/queue-name": "lq"}, "start")):
        watch = JobWatch(ENGINES["job"], LIMITS, logging.getLogger("test"))
        stuck = pod("Job", unschedulable="0/4 nodes are available")
        watch.see("tune", JobState(Stage.STARTING, "r"), {"metadata": {"labels": labels}}, [stuck])
        assert watch.clock.phase == phase


class Lines(NodeLog):
    """A log whose reads bring what the test says."""

    def __init__(self, *reads, read_until=""):
        self.told = []
        super().__init__("/log", "node", None, self.told.append, read_until=read_until)
        self.reads, self.queries = list(reads), []

    async def _stream(self, query):
        self.queries.append(query)
        for line in self.reads.pop(0):
            yield line


def stamped(*seconds, offset="Z", hour=0):
    return [f"2026-01-01T{hour:02}:00:0{second}.000000000{offset} line {second}" for second in seconds]


def test_lines_that_overlapping_reads_bring_twice_are_told_once():
    log = Lines(stamped(1, 2, 3), stamped(2, 3, 4), [*stamped(4), stamped(4)[0] + " more"])
    for _ in range(3):
        asyncio.run(log._read())
    assert log.told == ["line 1", "line 2", "line 3", "line 4", "line 4 more"]


FIRST = "2026-01-01T00:00:01.000000000Z"


class Missing(NodeLog):
    async def _read(self):
        raise ApiException(status=404, reason="pods not found")


def test_log_of_a_pod_that_was_gone_before_it_was_read_is_missed_once_and_aloud(caplog):
    wire = Wire(lambda: None, lambda: None, None, logging.getLogger("test"))
    for read_until, words in (("", ["The log cannot be read now: 404: pods not found"]), (FIRST, [])):
        caplog.clear()
        log = Missing("/log", "node", wire, print, read_until=read_until)
        asyncio.run(log.follow(lambda: True))
        assert [record.message for record in caplog.records] == words


def test_reader_that_takes_over_begins_after_the_last_line_that_was_told():
    first = Lines(stamped(1, 2))
    asyncio.run(first._read())
    second = Lines(stamped(1, 2, 3), read_until=first.read_until)
    asyncio.run(second._read())
    assert second.told == ["line 3"]


def test_log_of_a_node_in_another_time_zone_is_asked_for_in_utc():
    for offset, hour in (("Z", 0), ("+09:00", 9), ("+05:30", 5), ("-08:00", 16)):
        minutes = ":30:" if offset == "+05:30" else ":00:"
        written = [
            line.replace(":00:0", f"{minutes}0") for line in stamped(3, 4, 5, offset=offset, hour=hour)
        ]
        log = Lines(written[:2], written[1:])
        for _ in range(2):
            asyncio.run(log._read())
        day = "2026-01-02" if offset == "-08:00" else "2026-01-01"
        assert log.queries[1]["sinceTime"] == f"{day}T00:00:02Z"
        assert log.told == ["line 3", "line 4", "line 5"]


def test_lines_are_neither_lost_nor_doubled_where_the_nodes_offset_changes():
    summer, winter = stamped(1, 2, offset="+02:00", hour=3), stamped(3, 4, offset="+01:00", hour=2)
    first = Lines(summer, [summer[1], *winter[:1]])
    for _ in range(2):
        asyncio.run(first._read())
    second = Lines([*summer, *winter], read_until=first.read_until)
    asyncio.run(second._read())
    assert [*first.told, *second.told] == ["line 1", "line 2", "line 3", "line 4"]


def test_line_without_a_time_is_told_whole_and_moves_nothing():
    said = "unable to retrieve container logs for containerd://1a2b"
    log = Lines([*stamped(1), said], stamped(1, 2))
    for _ in range(2):
        asyncio.run(log._read())
    assert log.told == ["line 1", said, "line 2"]


def test_line_that_comes_late_with_an_earlier_time_is_told():
    log = Lines(stamped(2, 1, 3), stamped(2, 1, 3, 3))
    for _ in range(2):
        asyncio.run(log._read())
    assert log.told == ["line 2", "line 1", "line 3", "line 3"]


def test_log_of_many_lines_is_not_kept_in_memory():
    written = [f"2026-01-01T00:{n // 60:02}:{n % 60:02}.000000000Z line {n}" for n in range(3000)]
    log = Lines(written, written[-3:])
    for _ in range(2):
        asyncio.run(log._read())
    assert (log.told, len(log._told) < 1500) == ([f"line {n}" for n in range(3000)], True)
