"""Prepared once and kept: by content, whole or not at all, once whoever else asks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.trainer.data.kinds import CHATML, byte_level_bpe
from tests.trainer.data.preparing import prepare, trained_texts, write_rows
from trainer.data.cache import DONE_FILE, prepare_once

ROWS = [{"prompt": "a", "completion": f" {number}"} for number in range(20)]


def kept(tmp_path):
    return sorted(path.parent.name for path in (tmp_path / "kept").glob(f"*/{DONE_FILE}"))


def prepare_kept(tmp_path, tokenizer, rows=ROWS, **config):
    return prepare(tmp_path, tokenizer, rows, prepared_data_dir=str(tmp_path / "kept"), **config)


def test_second_call_reads_what_the_first_left(tmp_path, bpe, monkeypatch):
    (tmp_path / "rows.csv").write_text("prompt,completion\na, 1\nb, 2\n")
    first = prepare_kept(tmp_path, bpe, None, training_data_path=str(tmp_path / "rows.csv"))
    monkeypatch.setattr("csv.reader", lambda *_, **__: pytest.fail("the rows were read again"))
    second = prepare_kept(tmp_path, bpe, None, training_data_path=str(tmp_path / "rows.csv"))
    assert trained_texts(second, bpe) == trained_texts(first, bpe) == [" 1</s>", " 2</s>"]
    assert second.statistics == first.statistics


def test_same_content_under_another_name_is_the_same(tmp_path, bpe):
    prepare_kept(tmp_path, bpe)
    other = write_rows(tmp_path / "other.jsonl", ROWS)
    prepare_kept(tmp_path, bpe, None, training_data_path=str(other))
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [*ROWS, ROWS[0]]},
        {"max_seq_length": 7},
        {"packing": True},
        {"completion_only_loss": False},
        {"chat_template": CHATML + " "},
        {"truncation_mode": "keep_end"},
        {"shuffle_dataset": True},
        {"dataset_text_field": "prompt"},
    ],
)
def test_anything_the_rows_depend_on_makes_another(tmp_path, bpe, change):
    prepare_kept(tmp_path, byte_level_bpe())
    prepare_kept(tmp_path, byte_level_bpe(), **change)
    assert len(kept(tmp_path)) == 2


def test_another_tokenizer_makes_another(tmp_path, bpe):
    prepare_kept(tmp_path, bpe)
    other = byte_level_bpe()
    other.add_tokens(["<|complaint|>"])
    prepare_kept(tmp_path, other)
    assert len(kept(tmp_path)) == 2


def test_what_the_rows_do_not_depend_on_makes_no_other(tmp_path, bpe):
    prepare_kept(tmp_path, bpe)
    prepare_kept(tmp_path, bpe, learning_rate=1e-3, output_dir=str(tmp_path / "elsewhere"))
    assert len(kept(tmp_path)) == 1


def test_failed_preparation_leaves_nothing(tmp_path):
    def build(directory: Path) -> None:
        (directory / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        prepare_once(tmp_path, "key", build, lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def test_half_of_a_killed_preparation_is_made_again(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / ".key.dead.tmp").mkdir()
    made = prepare_once(
        tmp_path, "key", lambda directory: (directory / DONE_FILE).write_text("{}"), lambda: None
    )
    assert (made / DONE_FILE).exists()
    assert not (tmp_path / ".key.dead.tmp").exists()


def test_ranks_that_come_together_prepare_once(tmp_path):
    builds = []

    def build(directory: Path) -> None:
        builds.append(directory)
        time.sleep(0.3)
        (directory / DONE_FILE).write_text("{}")

    with ThreadPoolExecutor(4) as pool:
        ranks = [pool.submit(prepare_once, tmp_path, "key", build, lambda: None) for _ in range(4)]
        found = {rank.result() for rank in ranks}
    assert found == {tmp_path / "key"}
    assert len(builds) == 1


def test_waiting_rank_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.cache._WAIT_S", 0.05)
    lock = str(tmp_path / "key.lock")
    holder = (
        f"import filelock, time; lock = filelock.FileLock({lock!r}); lock.acquire(); print('held', flush=True); "
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE)
    beats = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 3:
            process.kill()

    assert process.stdout.readline() == b"held\n"
    prepare_once(tmp_path, "key", lambda directory: (directory / DONE_FILE).write_text("{}"), beat)
    process.communicate()
    assert len(beats) >= 3


def test_lock_of_a_dead_process_holds_nobody(tmp_path):
    (tmp_path / "key.lock").touch()
    started = time.monotonic()
    prepare_once(tmp_path, "key", lambda directory: (directory / DONE_FILE).write_text("{}"), lambda: None)
    assert time.monotonic() - started < 2


def test_statistics_are_kept_beside_the_rows(tmp_path, bpe):
    prepared = prepare_kept(tmp_path, bpe)
    found = json.loads((tmp_path / "kept" / kept(tmp_path)[0] / DONE_FILE).read_text())
    assert found["train"]["rows"] == prepared.statistics["rows"] == 20
