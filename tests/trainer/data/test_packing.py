"""Packed, padding-free and padded batches: the same loss and gradients, and next to no waste."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from airflow_provider_sft.contract.errors import ConfigError
from tests.trainer.data.preparing import model_config, prepare
from tests.trainer.data.texts import ANSWERS, TEXTS
from trainer.attention import register_document_attention
from trainer.data.batching import PaddedCollator, PaddingFreeCollator
from trainer.data.packing import pack_best_fit

ROWS = [
    {"prompt": f"{TEXTS[name]} {n}", "completion": f" {ANSWERS[name]}"}
    for n in range(4)
    for name in sorted(TEXTS)
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=register_document_attention(),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def loss_and_gradients(model, batches):
    """Summed over all batches, as gradient accumulation does."""
    model.zero_grad()
    total = count = 0
    for batch in batches:
        labels = batch["labels"]
        logits = model(
            **{key: value for key, value in batch.items() if key != "labels"}, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        loss.backward()
        total, count = total + loss.item(), count + int((labels[:, 1:] != -100).sum())
    return total / count, [parameter.grad.clone() / count for parameter in model.parameters()]


def assert_equal_training(model, one, other):
    (loss, gradients), (other_loss, other_gradients) = (
        loss_and_gradients(model, batches) for batches in (one, other)
    )
    assert loss == pytest.approx(other_loss, abs=1e-5)
    for gradient, other_gradient in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(gradient, other_gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_packed_rows_train_as_padded_rows_do(tmp_path, bpe, model, strategy):
    packed = prepare(tmp_path, bpe, ROWS, packing=True, packing_strategy=strategy, max_seq_length=256)
    padded = prepare(tmp_path, bpe, ROWS, padding_free=False, max_seq_length=256)
    assert len(packed.train) < len(padded.train) / 2
    packs = [packed.collator([pack]) for pack in packed.train]
    assert_equal_training(model, packs, [padded.collator(list(padded.train))])


def test_batch_without_padding_trains_as_a_padded_one_does(tmp_path, bpe, model):
    rows = list(prepare(tmp_path, bpe, ROWS).train)
    assert_equal_training(model, [PaddingFreeCollator()(rows)], [PaddedCollator(bpe.pad_token_id)(rows)])


def test_filling_up_to_a_multiple_changes_no_number(tmp_path, bpe, model):
    rows = list(prepare(tmp_path, bpe, ROWS).train)
    filled = PaddingFreeCollator(bpe.pad_token_id, multiple=64)(rows)
    assert filled["input_ids"].shape[1] % 64 == 0
    assert_equal_training(model, [filled], [PaddingFreeCollator()(rows)])


def test_positions_restart_at_each_document_of_a_pack(tmp_path, bpe):
    prepared = prepare(tmp_path, bpe, ROWS, packing=True, max_seq_length=256)
    batch = prepared.collator([prepared.train[0], prepared.train[1]])
    lengths = [*prepared.train[0]["seq_lengths"], *prepared.train[1]["seq_lengths"]]
    expected = [position for length in lengths for position in range(length)]
    assert batch["position_ids"][0].tolist() == expected
    assert batch["cu_seq_lens_q"].tolist() == np.cumsum([0, *lengths]).tolist()


def test_packs_hold_each_row_once_and_whole(tmp_path, bpe):
    packed = prepare(tmp_path, bpe, ROWS, packing=True, max_seq_length=256).train
    plain = prepare(tmp_path, bpe, ROWS).train
    documents = []
    for pack in packed:
        ends = np.cumsum(pack["seq_lengths"])
        documents += [part.tolist() for part in np.split(pack["input_ids"], ends[:-1])]
    assert sorted(documents) == sorted(row["input_ids"].tolist() for row in plain)


def test_packing_is_the_same_each_time(tmp_path, bpe):
    packs = [
        prepare(
            tmp_path, bpe, ROWS, packing=True, max_seq_length=256, prepared_data_dir=str(tmp_path / name)
        ).train
        for name in ("one", "two")
    ]
    assert [pack["input_ids"].tolist() for pack in packs[0]] == [
        pack["input_ids"].tolist() for pack in packs[1]
    ]


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_long_rows_are_split_and_not_cut(tmp_path, bpe, strategy):
    rows = [{"prompt": "a", "completion": " b" * 300}, {"prompt": "c", "completion": " d"}]
    prepared = prepare(tmp_path, bpe, rows, packing=True, packing_strategy=strategy, max_seq_length=64)
    assert sum(len(pack["input_ids"]) for pack in prepared.train) == prepared.statistics["tokens"] > 300
    assert max(len(pack["input_ids"]) for pack in prepared.train) == 64
    assert prepared.statistics["truncated_rows"] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300).flatmap(
        lambda size: st.tuples(st.just(size), st.lists(st.integers(1, size), min_size=1))
    )
)
def test_best_fit_places_each_row_once_and_overfills_no_pack(sized):
    capacity, lengths = sized
    bins = pack_best_fit(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= capacity for members in bins)


@pytest.mark.parametrize("capacity", [256, 1024, 4096])
def test_packs_are_at_least_as_full_as_promised(capacity):
    lengths = np.clip(np.random.default_rng(0).lognormal(4.5, 1.0, 20_000).astype(int), 4, capacity)
    bins = pack_best_fit(lengths.tolist(), capacity)
    assert lengths.sum() / (len(bins) * capacity) >= 0.995


def test_batch_computes_no_token_that_is_not_a_rows(tmp_path, bpe):
    prepared = prepare(tmp_path, bpe, ROWS)
    rows = list(prepared.train)
    assert isinstance(prepared.collator, PaddingFreeCollator)
    assert prepared.collator(rows)["input_ids"].numel() == sum(len(row["input_ids"]) for row in rows)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [("bloom", {}), ("mamba", {}), ("llama", {"peft_method": "pt"}), ("llama", {"padding_free": False})],
)
def test_model_that_cannot_keep_documents_apart_gets_padded_batches(tmp_path, bpe, model_type, config):
    changes = {"model_type": model_type}
    prepared = prepare(tmp_path, bpe, ROWS, model=changes, **config)
    assert isinstance(prepared.collator, PaddedCollator)


def test_packing_for_a_model_that_would_mix_documents_is_refused(tmp_path, bpe):
    with pytest.raises(
        ConfigError, match="packing is on, and a bloom model is not known to keep the documents"
    ):
        prepare(tmp_path, bpe, ROWS, model={"model_type": "bloom"}, packing=True)


def test_padding_free_asked_for_in_vain_is_said(tmp_path, bpe):
    said = []
    prepare(tmp_path, bpe, ROWS, model={"model_type": "bloom"}, padding_free=True, said=said)
    assert any("padding_free is on, and a bloom model" in sentence for sentence in said)


def test_window_shorter_than_the_rows_pads_by_default_alone(tmp_path, bpe):
    window = {"model_type": "mistral", "sliding_window": 128}
    assert isinstance(prepare(tmp_path, bpe, ROWS, model=window).collator, PaddedCollator)
    short = prepare(tmp_path, bpe, ROWS, model=window, max_seq_length=128)
    assert isinstance(short.collator, PaddingFreeCollator)


def test_model_config_of_tests_is_readable(tmp_path):
    assert (model_config(tmp_path) / "config.json").exists()
