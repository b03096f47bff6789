"""The seed's three example configs, taken from its own text, run with small stand-ins for model and data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from tests import tiny

SEED = (Path(__file__).parents[1] / "seed" / "image.md").read_text()
CONFIGS = Path(__file__).parents[1] / "contract" / "configs"
# Two ranks without a GPU and without a word in the config, as Kubeflow's Trainer asks for them.
TWO = {"SET_NUM_PROCESSES_TO_NUM_GPUS": "False", "PET_NPROC_PER_NODE": "2"}


def two_gpu_example() -> dict:
    [text] = re.findall(r"```json\n(.*?)```", SEED, flags=re.DOTALL)
    return json.loads(text)


def config_map_example() -> dict:
    [text] = re.findall(r"```yaml\n(.*?)^---$", SEED, flags=re.DOTALL | re.MULTILINE)
    return json.loads(yaml.safe_load(text)["config.json"])


def kubeflow_example() -> dict:
    """Which the seed links to."""
    return json.loads((CONFIGS / "kubeflow.json").read_text())


EXAMPLES = {"two_gpu_fsdp": two_gpu_example, "config_map": config_map_example, "kubeflow": kubeflow_example}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_of_the_seeds_text_is_what_other_tests_read(name):
    assert EXAMPLES[name]() == json.loads((CONFIGS / f"{name}.json").read_text())


@pytest.fixture
def stand_in(tmp_path):
    """An example with its three paths led to small stand-ins."""
    tweets = tiny.write_tweets(tmp_path / "tweets.jsonl", rows=16)
    rows = [json.loads(line) for line in tweets.read_text().splitlines()]
    (tmp_path / "twitter_complaints.json").write_text(json.dumps(rows))

    def stand_in(example, model_dir) -> dict:
        paths = {
            "model_name_or_path": str(model_dir),
            "training_data_path": str(tmp_path / "twitter_complaints.json"),
            "output_dir": str(tmp_path / "out"),
        }
        assert example.keys() >= paths.keys()
        return example | paths

    return stand_in


def mounted(directory: Path, config: dict) -> dict[str, str]:
    """The config as a ConfigMap appears in a pod: a link to a file in a directory with a date."""
    dated = directory / "..2026_01_01"
    dated.mkdir(parents=True)
    (dated / "config.json").write_text(json.dumps(config))
    (directory / "config.json").symlink_to(dated / "config.json")
    return {
        "SFT_TRAINER_CONFIG_JSON_ENV_VAR": "",
        "SFT_TRAINER_CONFIG_JSON_PATH": str(directory / "config.json"),
    }


def result_of(tmp_path) -> dict:
    assert (tmp_path / "out" / ".complete").exists()
    return json.loads((tmp_path / "out" / "result.json").read_text())


def test_two_gpu_example_trains_on_two_ranks_from_the_encoded_json(
    run_trainer, stand_in, tiny_model_dir, tmp_path
):
    run = run_trainer(stand_in(two_gpu_example(), tiny_model_dir), **TWO)
    result = result_of(tmp_path)
    # 16 rows, 2 ranks with 4 each.
    assert (result["world_size"], result["steps"], result["epochs"]) == (2, 10, 5.0)
    assert (result["model_kind"], result["distributed"]) == ("full", "ddp")
    assert "FSDP applies to GPUs only" in run.stderr
    assert "a full fine-tune loads in vLLM as it is" in " ".join(result["notices"])
    # bfloat16 weights at this learning rate hardly move; that five epochs were logged is what can be told.
    assert [progress["epoch"] for progress in run.progress] == [1, 2, 3, 4, 5]


def test_config_map_example_trains_from_the_mounted_file(run_trainer, stand_in, tiny_model_dir, tmp_path):
    config = stand_in(config_map_example(), tiny_model_dir)
    run = run_trainer({}, **mounted(tmp_path / "config", config))
    result = result_of(tmp_path)
    assert (result["world_size"], result["steps"], result["epochs"]) == (1, 20, 5.0)
    assert "lora_post_process_for_vllm" not in config
    assert run.result["model_path"] == str(tmp_path / "out")


def test_kubeflow_example_trains_a_bloom_as_a_pytorchjobs_master(run_trainer, stand_in, tmp_path):
    config = stand_in(kubeflow_example(), save_bloom(tmp_path / "bloom"))
    master = {
        "PET_NNODES": "1",
        "WORLD_SIZE": "1",
        "RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "23456",
    }
    run_trainer({}, **mounted(tmp_path / "config", config), **TWO, **master)
    result = result_of(tmp_path)
    # 16 rows, 2 ranks with 4 each, 4 batches a step: one step an epoch.
    assert (result["world_size"], result["steps"], result["epochs"]) == (2, 10, 10.0)
    assert 'Config key \'use_flash_attn\' is now written "attn_implementation": "sdpa".' in result["notices"]


def save_bloom(directory: Path) -> Path:
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = tiny.train_tokenizer()
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
