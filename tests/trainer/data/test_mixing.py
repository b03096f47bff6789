"""Several data sets: splits, weights, strategies, seeds; from files and as streams."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import datasets
import pytest

from airflow_provider_sft.contract.errors import ConfigError, DataError
from tests.trainer.data.preparing import prepare, trained_texts, write_rows


def source(tmp_path, name, rows, **keys):
    path = write_rows(
        tmp_path / f"{name}.jsonl", [{"prompt": name, "completion": f" {i}"} for i in range(rows)]
    )
    return {"name": name, "data_paths": [str(path)], **keys}


def mix(tmp_path, tokenizer, *sources, processor=None, **config):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"dataprocessor": processor or {}, "datasets": list(sources)}))
    return prepare(tmp_path, tokenizer, data_config_path=str(path), **config)


def first_words(prepared, tokenizer, count=None):
    return [tokenizer.decode(row["input_ids"])[0] for row in islice(prepared.train, count)]


def test_without_weights_data_sets_follow_each_other(tmp_path, bpe):
    prepared = mix(tmp_path, bpe, source(tmp_path, "a", 3), source(tmp_path, "b", 2))
    assert first_words(prepared, bpe) == list("aaabb")


@pytest.mark.parametrize("strategy", ["all_exhausted", "first_exhausted"])
def test_weights_draw_as_datasets_does_with_the_same_seed(tmp_path, bpe, strategy):
    sources = [source(tmp_path, "a", 40, sampling=0.25), source(tmp_path, "b", 20, sampling=0.75)]
    prepared = mix(tmp_path, bpe, *sources, processor={"seed": 5, "sampling_stopping_strategy": strategy})
    expected = datasets.interleave_datasets(
        [datasets.Dataset.from_dict({"w": [name] * count}) for name, count in (("a", 40), ("b", 20))],
        probabilities=[0.25, 0.75],
        seed=5,
        stopping_strategy=strategy,
    )
    assert first_words(prepared, bpe) == expected["w"][:]


def test_split_gives_each_row_to_one_side_and_is_the_same_each_time(tmp_path, bpe):
    one = source(tmp_path, "a", 20, split={"train": 0.75, "validation": 0.25})
    first = mix(tmp_path, bpe, one)
    again = mix(tmp_path, bpe, one, prepared_data_dir=str(tmp_path / "elsewhere"))
    train, validation = trained_texts(first, bpe), [bpe.decode(r["labels"][1:]) for r in first.validation]
    assert (len(train), len(validation)) == (15, 5)
    assert len({*train, *validation}) == 20
    assert trained_texts(again, bpe) == train
    assert first.statistics["rows"] == 15
    assert first.statistics["validation"]["rows"] == 5


def test_split_without_shuffle_keeps_the_order(tmp_path, bpe):
    one = source(tmp_path, "a", 10, split={"train": 0.8, "validation": 0.2}, shuffle=False)
    assert trained_texts(mix(tmp_path, bpe, one), bpe) == [f" {i}</s>" for i in range(8)]


def test_data_set_for_validation_alone_is_not_trained_on(tmp_path, bpe):
    held = source(tmp_path, "b", 4, split={"train": 0, "validation": 1})
    prepared = mix(tmp_path, bpe, source(tmp_path, "a", 3), held, eval_strategy="epoch")
    assert set(first_words(prepared, bpe)) == {"a"}
    assert len(prepared.validation) == 4


def test_split_of_too_few_rows_says_so(tmp_path, bpe):
    one = source(tmp_path, "a", 1, split={"train": 0.5, "validation": 0.5})
    with pytest.raises(
        DataError, match=r"a.jsonl has 1 rows, too few to split into train 0.5 and validation 0.5"
    ):
        mix(tmp_path, bpe, one)


def test_evaluation_without_data_for_it_is_refused(tmp_path, bpe):
    with pytest.raises(ConfigError, match="eval_strategy.*'epoch'.*there is no"):
        mix(tmp_path, bpe, source(tmp_path, "a", 3), eval_strategy="epoch")


def test_shuffle_dataset_shuffles_by_seed(tmp_path, bpe):
    one = source(tmp_path, "a", 30)
    plain = trained_texts(mix(tmp_path, bpe, one), bpe)
    shuffled = [trained_texts(mix(tmp_path, bpe, one, shuffle_dataset=True, seed=s), bpe) for s in (1, 1, 2)]
    assert sorted(shuffled[0]) == sorted(plain)
    assert plain != shuffled[0] == shuffled[1] != shuffled[2]


STREAM = {"streaming": True, "seed": 3}


def test_stream_gives_the_same_rows_as_the_files(tmp_path, bpe):
    sources = [source(tmp_path, "a", 50, sampling=0.5), source(tmp_path, "b", 50, sampling=0.5)]
    whole = mix(tmp_path, bpe, *sources, processor={"seed": 3})
    stream = mix(tmp_path, bpe, *sources, processor=STREAM, max_steps=5)
    assert isinstance(stream.train, datasets.IterableDataset)
    assert trained_texts(stream, bpe) == trained_texts(whole, bpe)[: len(trained_texts(stream, bpe))]


def test_stream_starts_again_in_the_same_order(tmp_path, bpe):
    stream = mix(tmp_path, bpe, source(tmp_path, "a", 50), processor=STREAM, max_steps=5)
    assert first_words(stream, bpe, 20) == first_words(stream, bpe, 20)
    assert [row["labels"][-2] for row in stream.train] == [row["labels"][-2] for row in stream.train]


def rest_after_each(stream, *counts):
    """The rows after so many, as one goes on and as one that begins from the state there gives them."""
    for count in counts:
        iterator = iter(stream)
        list(islice(iterator, count))
        state = json.loads(json.dumps(stream.state_dict(), default=int))
        rest = [row["input_ids"] for row in iterator]
        stream.load_state_dict(state)
        yield rest, [row["input_ids"] for row in stream]
        stream.load_state_dict(None)


def odd_lines(tmp_path):
    """A byte-order mark, both ends of lines, blank lines, rows that are left out, characters of many bytes."""
    texts = ["\ufeff", *(f'{{"prompt": "é", "completion": " {i}"}}\r\n\n' for i in range(20))]
    texts += ['{"prompt": "é", "completion": ""}\n', '{"prompt": "日本", "completion": " z"}']
    (tmp_path / "odd.jsonl").write_bytes("".join(texts).encode())
    return {"name": "odd", "data_paths": [str(tmp_path / "odd.jsonl"), str(tmp_path / "a.jsonl")]}


def test_stream_goes_on_from_its_state_bit_exactly_wherever_that_is(tmp_path, bpe):
    source(tmp_path, "a", 30)
    stream = mix(tmp_path, bpe, odd_lines(tmp_path), processor=STREAM, max_steps=5).train
    for rest, resumed in rest_after_each(stream, 1, 17, 20, 21, 22, 50, 51):
        assert resumed == rest


@pytest.mark.parametrize("strategy", ["all_exhausted", "first_exhausted"])
def test_streams_drawn_by_weight_go_on_from_their_state(tmp_path, bpe, strategy):
    sources = [source(tmp_path, "a", 20, sampling=0.3), source(tmp_path, "b", 50, sampling=0.7)]
    processor = {**STREAM, "sampling_stopping_strategy": strategy}
    stream = mix(tmp_path, bpe, *sources, processor=processor, max_steps=5).train
    for rest, resumed in rest_after_each(stream, 1, 13, 25):
        assert rest
        assert resumed == rest


def test_stream_that_goes_on_reads_no_row_that_is_behind_it(tmp_path, bpe):
    """Line 3,000 is damaged by then: the first lines say what the rows are, and those from the place on are read."""
    one = source(tmp_path, "a", 6000)
    stream = mix(tmp_path, bpe, one, processor=STREAM, max_steps=5).train
    iterator = iter(stream)
    list(islice(iterator, 5000))
    state, rest = stream.state_dict(), [row["input_ids"] for row in iterator]
    [path] = map(Path, one["data_paths"])
    lines = path.read_text().splitlines()
    lines[2999] = "no JSON"
    path.write_text("\n".join(lines))
    stream.load_state_dict(state)
    assert [row["input_ids"] for row in stream] == rest


def test_stream_of_another_kind_of_file_goes_on_as_well(tmp_path, bpe):
    rows = [{"prompt": "a", "completion": f" {i}"} for i in range(30)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    one = {"name": "array", "data_paths": [str(tmp_path / "rows.json")]}
    stream = mix(tmp_path, bpe, one, processor=STREAM, max_steps=5).train
    [(rest, resumed)] = rest_after_each(stream, 11)
    assert (len(rest), resumed) == (19, rest)


def test_stream_has_no_statistics_but_of_its_first_rows(tmp_path, bpe):
    stream = mix(tmp_path, bpe, source(tmp_path, "a", 1500), processor=STREAM, max_steps=5)
    assert stream.statistics["rows"] == 1000
    assert stream.statistics["format"] == "the first 1,000 rows of a stream"


def test_wrong_row_of_a_stream_is_named_when_it_is_met(tmp_path, bpe):
    one = source(tmp_path, "a", 9000)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"prompt": "a"}\n')
    stream = mix(tmp_path, bpe, one, processor=STREAM, max_steps=5)
    with pytest.raises(DataError, match="a.jsonl line 9001: 'completion' is missing"):
        list(stream.train)


def test_template_that_no_row_of_a_stream_has_ends_the_run_at_once(tmp_path, bpe):
    one = source(tmp_path, "a", 10)
    config = {"dataset_text_field": "prompt", "response_template": "### Label:", "max_steps": 5}
    with pytest.raises(DataError, match="no row with a token to train"):
        mix(tmp_path, bpe, one, processor=STREAM, **config)
