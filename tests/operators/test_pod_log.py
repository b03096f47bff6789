import pytest

from airflow_provider_sft.pod_log import LogWindow


def stamped(*numbers, text="line"):
    return [f"2026-01-01T00:00:{number:02d}.000000000Z {text} {number}" for number in numbers]


def read(window, lines):
    window.begin_read()
    return list(window.take(lines))


def test_first_read_takes_the_whole_log():
    window = LogWindow()
    assert window.begin_read() is None
    assert list(window.take(stamped(1, 2))) == ["line 1", "line 2"]


def test_later_reads_overlap_and_tell_each_line_once():
    window = LogWindow()
    read(window, stamped(1, 2))
    assert window.begin_read() >= 2
    assert list(window.take(stamped(1, 2, 3))) == ["line 3"]
    assert read(window, stamped(2, 3)) == []


def test_equal_lines_are_told_as_often_as_they_were_written():
    window = LogWindow()
    read(window, stamped(1, 1))
    assert read(window, stamped(1, 1, 1)) == ["line 1"]


def test_line_that_comes_late_with_an_earlier_time_is_not_lost():
    window = LogWindow()
    read(window, stamped(1, 3))
    assert read(window, stamped(1, 2, 3)) == ["line 2"]


def test_reader_that_takes_over_goes_on_after_the_bookmark():
    first, second = LogWindow(), LogWindow()
    read(first, stamped(1, 2))
    second.read_until = first.read_until
    assert read(second, stamped(1, 2, 3)) == ["line 3"]


def test_read_that_broke_off_is_made_up_for_by_the_next():
    def break_off(lines):
        yield from lines
        raise OSError("cut")

    for first in ([], stamped(1)):
        window, told = LogWindow(), []
        read(window, first)
        window.begin_read()
        with pytest.raises(OSError, match="cut"):
            told += window.take(break_off(stamped(2, 2)))
        assert told + read(window, [*first, *stamped(2, 2, 2, 3)]) == [*["line 2"] * 3, "line 3"]


def test_read_that_failed_is_made_up_for_by_the_next():
    window = LogWindow()
    read(window, stamped(1))
    window.begin_read()  # and nothing came
    assert read(window, stamped(1, 2, 3)) == ["line 2", "line 3"]
