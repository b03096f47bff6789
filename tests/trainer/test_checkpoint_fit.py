"""A checkpoint of another base model, or of another way of tuning, is known by its manifest or its own headers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from airflow_provider_sft.contract.settings import resolve_config
from tests.trainer.here import run_here
from tests.trainer.runs import leave_unfinished
from trainer.checkpoint_fit import describe_run, find_misfit
from trainer.resume_choice import choose_checkpoint
from trainer.run_dir import RunDir


@pytest.fixture
def checkpoint(undisturbed, tmp_path):
    """Of LoRA with rank 8 over two layers, 64 wide."""
    return Path(shutil.copytree(undisturbed.out / "checkpoint-40", tmp_path / "checkpoint-40"))


@pytest.fixture
def values(undisturbed):
    return resolve_config(undisturbed.config).values


def weights_of(undisturbed):
    record = json.loads((undisturbed.out / ".sft.run.json").read_text())
    return record["weights_sha256"]


def misfit(checkpoint, values, sha256="other"):
    return find_misfit(checkpoint, describe_run(values, sha256), Path(values["model_name_or_path"]))


def make_foreign(checkpoint):
    (checkpoint / "manifest.json").unlink()
    return checkpoint


def change_weights(checkpoint, change):
    path = checkpoint / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def test_checkpoint_of_this_run_fits_with_and_without_its_manifest(checkpoint, values, undisturbed):
    assert misfit(checkpoint, values, weights_of(undisturbed)) is None
    assert misfit(make_foreign(checkpoint), values) is None


def test_checkpoint_over_other_weights_is_known_by_its_manifest(checkpoint, values):
    assert misfit(checkpoint, values) == "it was trained over other weights of the base model"


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 4}, "its adapter has r 8, and the config says 4"),
        ({"peft_method": "none"}, "it holds an adapter"),
        ({"peft_method": "pt"}, "it holds an adapter"),
    ],
)
def test_checkpoint_of_another_tuning_is_named(checkpoint, values, undisturbed, foreign, changes, words):
    if foreign:
        make_foreign(checkpoint)
    assert words in misfit(checkpoint, {**values, **changes}, weights_of(undisturbed))


def test_foreign_adapter_of_another_width_is_known_by_its_headers(checkpoint, values):
    change_weights(make_foreign(checkpoint), lambda found: {k: torch.zeros(v.shape[0] * 3, v.shape[1] * 3) for k, v in found.items()})  # fmt: skip
    assert "has width 192, and the base model's is" in misfit(checkpoint, values)


@pytest.mark.parametrize("count", [1, 3])
def test_foreign_adapter_with_other_layers_is_known_by_its_headers(checkpoint, values, count):
    def change(found):
        first = {name: tensor for name, tensor in found.items() if ".layers.0." in name}
        return {
            name.replace(".0.", f".{n}."): tensor.clone()
            for n in range(count)
            for name, tensor in first.items()
        }

    change_weights(make_foreign(checkpoint), change)
    assert misfit(checkpoint, values) == f"it has {count} layers, and the base model 2"


def test_foreign_whole_model_of_another_shape_is_known_by_its_config(checkpoint, values, tiny_model_dir):
    for path in make_foreign(checkpoint).glob("adapter_*"):
        path.unlink()
    config = json.loads((tiny_model_dir / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    assert "hidden_size 32, and this one 64" in misfit(checkpoint, {**values, "peft_method": None})
    assert "it holds a whole model, and peft_method is 'lora'" in misfit(checkpoint, values)


def test_named_checkpoint_of_another_rank_is_64_before_a_rank_starts(checkpoint, lora_config):
    result = run_here({**lora_config, "r": 4, "resume_from_checkpoint": str(checkpoint)})
    assert result["exit_code"] == 64
    assert "its adapter has r 8, and the config says 4" in result["reason"]


def test_found_checkpoint_of_another_base_is_set_aside_with_a_sentence(checkpoint, lora_config):
    out = leave_unfinished(lora_config)
    shutil.copytree(checkpoint, out / "checkpoint-40")
    settings, said = resolve_config(lora_config), []
    facts = describe_run(settings.values, "other")
    assert choose_checkpoint(settings, RunDir(out), facts, said.append) is None
    assert said == ["Set aside checkpoint-40: it was trained over other weights of the base model."]
    assert not (out / "checkpoint-40").exists()


def test_checkpoint_carries_base_and_tuning_in_its_manifest(undisturbed):
    manifest = json.loads((undisturbed.out / "checkpoint-40" / "manifest.json").read_text())
    assert manifest["base"]["sha256"] == weights_of(undisturbed)
    assert manifest["base"]["hidden_size"] == 64
    assert manifest["tuning"] == {"peft_method": "lora", "r": 8}
