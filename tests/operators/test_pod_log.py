import pytest

from airflow_provider_sft.log_stamp import to_utc
from airflow_provider_sft.pod_log import LogWindow


def stamped(*numbers, text="line", hour=0, offset="Z"):
    return [f"2026-01-01T{hour:02d}:00:{number:02d}.000000000{offset} {text} {number}" for number in numbers]


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


def test_reader_that_takes_over_goes_on_where_the_nodes_offset_changed_meanwhile():
    summer, winter = stamped(1, 2, hour=3, offset="+02:00"), stamped(3, hour=2, offset="+01:00")
    first, second = LogWindow(), LogWindow()
    told = read(first, summer)
    second.read_until = first.read_until
    assert told + read(second, [*summer, *winter]) == ["line 1", "line 2", "line 3"]
    assert second.read_until == "2026-01-01T01:00:03.000000000Z"


def test_line_without_a_time_is_told_whole_and_moves_no_bookmark():
    said = "unable to retrieve container logs for containerd://1a2b"
    window = LogWindow()
    assert read(window, [*stamped(1), said]) == ["line 1", said]
    assert (read(window, [*stamped(1, 2), said]), window.read_until) == (["line 2"], stamped(2)[0][:30])


@pytest.mark.parametrize(
    ("stamp", "utc"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000000Z"),
        ("2026-01-01T08:59:59.5+09:00", "2025-12-31T23:59:59.500000000Z"),
        ("2025-12-31T16:30:00.123456789-07:30", "2026-01-01T00:00:00.123456789Z"),
        ("2026-01-01T00:00:00.1+00:00", "2026-01-01T00:00:00.100000000Z"),
        ("Error:", ""),
        ("2026-01-01", ""),
        ("", ""),
    ],
)
def test_stamp_with_any_offset_is_read_as_utc(stamp, utc):
    assert to_utc(stamp) == utc
