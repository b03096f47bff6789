"""The estimate: sizes of models from little, and its figures against real checkpoints and real peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_sft.cli import main
from airflow_provider_sft.contract.estimate import describe_bytes, estimate_run
from airflow_provider_sft.contract.model_size import find_model_size, read_size_in_name
from airflow_provider_sft.contract.settings import resolve_config
from tests import tiny
from tests.trainer.here import run_here, train_here

GIB = 2**30
# The seed's example for two GPUs.
SEED = {
    "model_name_or_path": "/llama/13B",
    "training_data_path": "/data/twitter_complaints.json",
    "output_dir": "/output/llama-13b-ft-multigpu",
    "num_train_epochs": 5.0,
    "per_device_train_batch_size": 4,
    "dataset_text_field": "output",
    "response_template": "\n### Label:",
}


def estimate(config, **options):
    return estimate_run(resolve_config(config).values, **options)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("/llama/13B", 13e9),
        ("bigscience/bloom-560m", 560e6),
        ("ibm-granite/granite-3.1-2b-instruct", 2e9),
        ("Qwen/Qwen3-30B-A3B", 30e9),
        ("Qwen2.5-0.5B", 0.5e9),
        ("mistralai/Mixtral-8x7B-v0.1", 44.8e9),
        ("/data/models/my-4bit-model", None),
        ("openai-community/gpt2", None),
    ],
)
def test_size_is_read_from_a_name(name, parameters):
    assert read_size_in_name(name) == parameters


def test_headers_count_every_parameter(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    size = find_model_size(str(tiny_model_dir), model_parameters=99e9)
    assert size.parameters == sum(weight.numel() for weight in model.parameters())
    assert size.source == f"the safetensors headers in {tiny_model_dir}"


@pytest.mark.parametrize("tie", [False, True])
def test_config_without_weights_comes_within_two_percent(tmp_path, tie):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=1000, tie_word_embeddings=tie,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    real = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    assert find_model_size(str(tmp_path)).parameters == pytest.approx(real, rel=0.02)


def test_what_a_user_says_wins_over_a_name_alone():
    assert find_model_size("/llama/13B", 7e9).source == "model_parameters (7 B)"


def test_a_model_of_unknown_size_has_no_estimate():
    assert estimate({**SEED, "model_name_or_path": "openai-community/gpt2"}) is None


@pytest.mark.parametrize(
    "options",
    [
        {"r": 8},
        {"r": 4, "target_modules": ["all-linear"]},
        {"r": 8, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
        {"r": 8, "target_modules": r".*\.[01]\.self_attn\.(q|k)_proj"},
        {"r": 8, "modules_to_save": ["lm_head"]},
    ],
)
def test_trained_parameters_of_lora_are_pefts_own_count(tiny_model_dir, options):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = {**SEED, "model_name_or_path": str(tiny_model_dir), "peft_method": "lora", **options}
    if options.get("target_modules") == ["all-linear"]:
        options = {**options, "target_modules": "all-linear"}
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    assert estimate(config).trained == tuned.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({}, 5),
        ({"save_total_limit": 2}, 3),
        ({"save_total_limit": 9}, 5),
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "steps", "save_steps": 10}, None),
        ({"save_strategy": "steps", "save_steps": 10, "save_total_limit": 1}, 2),
        ({"save_strategy": "steps", "save_steps": 10, "max_steps": 25}, 3),
        ({"save_strategy": "steps", "save_steps": 0.25}, 4),
    ],
)
def test_checkpoints_at_once_are_those_kept_and_the_one_being_written(keys, kept):
    assert estimate({**SEED, **keys}).kept == kept


def test_seeds_example_needs_five_checkpoints_and_the_model():
    found = estimate(SEED, gpus=2)
    assert found.checkpoint.size_bytes == 13_000_000_000 * 6
    assert found.storage.size_bytes == 13_000_000_000 * (5 * 6 + 2)
    assert found.storage.why == "5 checkpoints 363 GiB, final model 24.2 GiB"
    assert found.device.size_bytes == 13_000_000_000 * 8 // 2


def test_merged_export_needs_room_for_the_base_model():
    lora = {**SEED, "peft_method": "lora", "lora_post_process_for_vllm": True, "vllm_export": "merged"}
    merged, adapter = estimate(lora), estimate({**lora, "vllm_export": "adapter"})
    assert merged.storage.size_bytes > 26_000_000_000 > adapter.storage.size_bytes


def test_model_from_the_hub_is_downloaded_into_the_containers_storage():
    assert (
        estimate({**SEED, "model_name_or_path": "bigscience/bloom-560m"}).download.size_bytes == 1_120_000_000
    )
    assert estimate(SEED).download.size_bytes == 0


def test_estimating_needs_no_heavy_package():
    code = (
        "import sys; import airflow_provider_sft.contract.estimate;"
        "print(sorted({'torch', 'numpy', 'safetensors', 'airflow', 'jsonschema'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (1536, "1.5 KiB"), (150 * 2**20, "150 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_bytes_read_well(size_bytes, text):
    assert describe_bytes(size_bytes) == text


# Against reality: one small run each.

_MEASURE = (
    "import resource, subprocess, sys; code = subprocess.call([sys.executable, '-P', '-m', 'trainer']);"
    "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
)


class Run:
    """A real run of two steps: its last checkpoint and its final model."""

    def __init__(self, directory: Path, model_dir: Path, **keys) -> None:
        self.out = directory / "out"
        self.config = {
            "model_name_or_path": str(model_dir),
            "training_data_path": str(tiny.write_tweets(directory / "tweets.jsonl")),
            "output_dir": str(self.out),
            "dataset_text_field": "output",
            "response_template": "\n### Label:",
            "max_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "per_device_train_batch_size": 1,
            "report": False,
            "generate_samples": 0,
            **keys,
        }
        self.run(directory)
        self.estimate = estimate(self.config)

    def run(self, directory: Path) -> None:
        train_here(self.config, directory / "scratch")
        result = run_here(self.config)  # which finds it trained, and does the rest
        assert result["exit_code"] == 0, result

    @property
    def checkpoint_bytes(self) -> int:
        return _size(self.out / "checkpoint-2")

    @property
    def all_bytes(self) -> int:
        return _size(self.out)


class Measured(Run):
    """In processes of its own, with the peak memory of its rank."""

    def run(self, directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps(self.config))
        env = {
            **os.environ,
            "SFT_TRAINER_CONFIG_JSON_PATH": str(directory / "config.json"),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE], env=env, capture_output=True, text=True, check=True
        )
        code, self.peak_bytes = map(int, done.stdout.split()[-2:])
        assert code == 0, done.stderr[-3000:]


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """14 M parameters: enough to stand out from Python and torch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny.train_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1536, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


LORA = {"peft_method": "lora", "r": 64, "target_modules": ["all-linear"]}


@pytest.mark.parametrize("keys", [{"torch_dtype": "float32"}, LORA], ids=["full", "lora"])
def test_run_takes_the_room_and_the_memory_that_was_estimated_and_little_more(tmp_path, model_dir, keys):
    run = Measured(tmp_path, model_dir, **keys)
    assert_room_is_as_estimated(run)
    needed = run.estimate.host.size_bytes - 30 * 2**20  # the parent's share: what is measured is the rank
    assert needed <= run.peak_bytes <= needed + 300 * 2**20, run.estimate.host.why


def test_run_in_bf16_takes_the_room_that_was_estimated_and_little_more(tmp_path, model_dir):
    assert_room_is_as_estimated(Run(tmp_path, model_dir))


def assert_room_is_as_estimated(run: Run) -> None:
    assert (
        run.estimate.checkpoint.size_bytes
        <= run.checkpoint_bytes
        <= 1.05 * run.estimate.checkpoint.size_bytes
    )
    assert run.estimate.kept == 2
    assert run.estimate.storage.size_bytes <= run.all_bytes <= 1.05 * run.estimate.storage.size_bytes


# sft-config estimate


def run_cli(tmp_path, capsys, *options, **keys):
    (tmp_path / "c.json").write_text(json.dumps({**SEED, **keys}))
    code = main(["estimate", str(tmp_path / "c.json"), *options])
    return code, capsys.readouterr()


def test_cli_says_needs_at_least_and_never_that_it_fits(tmp_path, capsys):
    code, said = run_cli(tmp_path, capsys, "--gpus", "2", "--gpu-memory", "80Gi", "--memory", "200Gi")
    assert code == 0
    assert "Each GPU needs at least 48.4 GiB (weights 24.2 GiB" in said.out
    assert "output_dir needs at least 387 GiB (5 checkpoints 363 GiB, final model 24.2 GiB)." in said.out
    assert "fits" not in said.out


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--gpus", "2", "--gpu-memory", "40Gi"], 202, "It cannot fit: A GPU has 40.0 GiB and needs at least 48.4 GiB."),
        (["--memory", "50Gi"], 202, "It cannot fit: The container's memory has 50.0 GiB and needs at least 97.3 GiB."),
        (["--storage", "90Gi"], 201, "It cannot fit: output_dir has 90.0 GiB and needs at least 96.9 GiB."),
    ],
)  # fmt: skip
def test_cli_says_what_cannot_fit(tmp_path, capsys, options, code, sentence):
    found, said = run_cli(tmp_path, capsys, *options)
    assert (found, said.out.splitlines()[-1]) == (code, sentence)


def test_cli_asks_for_the_size_of_an_unknown_model(tmp_path, capsys):
    code, said = run_cli(tmp_path, capsys, model_name_or_path="gpt2")
    assert code == 64
    assert "The size of 'gpt2' is not known here" in said.err
    assert run_cli(tmp_path, capsys, "--model-parameters", "124M", model_name_or_path="gpt2")[0] == 0
