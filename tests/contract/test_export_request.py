import json

import pytest

from airflow_provider_sft.contract.base_model import BaseModel
from airflow_provider_sft.contract.errors import ExportError
from airflow_provider_sft.contract.export_request import find_base_obstacle
from airflow_provider_sft.contract.settings import resolve_config
from airflow_provider_sft.contract.validation import validate_config

BASE = {
    "model_name_or_path": "/model",
    "training_data_path": "/data/train.jsonl",
    "output_dir": "/output/run",
    "lora_post_process_for_vllm": True,
}
LORA = {"peft_method": "lora"}
IMPOSSIBLE = [
    ({"peft_method": "alora", "alora_invocation_string": "Answer:"}, "aLoRA"),
    ({"peft_method": "alora", "alora_invocation_string": "Answer:", "vllm_export": "merged"}, "aLoRA"),
    ({"peft_method": "pt"}, "virtual tokens"),
    (LORA | {"use_dora": True}, "vLLM has no DoRA in any release. Set vllm_export to 'merged'."),
    (LORA | {"bias": "all"}, "trained biases"),
    (LORA | {"modules_to_save": ["embed_tokens", "norm"]}, "no modules_to_save of a language model (norm)"),
    (LORA | {"init_lora_weights": "pissa", "vllm_export": "merged"}, "init_lora_weights 'pissa'"),
]
POSSIBLE = [
    LORA | {"modules_to_save": ["embed_tokens", "lm_head"]},
    LORA | {"modules_to_save": ["norm"], "vllm_export": "merged"},
    {},
    LORA,
    LORA | {"use_dora": True, "vllm_export": "merged"},
    LORA | {"init_lora_weights": "gaussian"},
    LORA | {"use_dora": True, "lora_post_process_for_vllm": False},
]


@pytest.mark.parametrize(("keys", "sentence"), IMPOSSIBLE)
def test_export_that_no_adapter_of_the_kind_allows_is_refused_before_training(keys, sentence):
    for check in (validate_config, resolve_config):
        with pytest.raises(ExportError, match="'lora_post_process_for_vllm' is true") as refused:
            check(BASE | keys)
        assert sentence in str(refused.value)
        assert refused.value.exit_code == 69


@pytest.mark.parametrize("keys", POSSIBLE)
def test_export_that_may_be_possible_is_let_through(keys):
    assert validate_config(BASE | keys)


def test_wrong_config_is_told_before_its_export():
    with pytest.raises(Exception, match="Unknown config key 'learning_rte'"):
        validate_config(BASE | LORA | {"use_dora": True, "learning_rte": 1})


@pytest.fixture
def obstacle(tmp_path):
    """What stands against an export with these keys on a base of this architecture, with two tied embeddings."""

    def find(architecture, **keys):
        config = {"architectures": [architecture], "vocab_size": 64, "tie_word_embeddings": True}
        (tmp_path / "config.json").write_text(json.dumps(config))
        header = b'{"model.embed_tokens.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}'
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        return find_base_obstacle(resolve_config(BASE | LORA | keys).values, BaseModel(tmp_path))

    return find


@pytest.mark.parametrize(
    ("architecture", "keys", "reason"),
    [
        ("GPT2LMHeadModel", {}, "takes no LoRA for GPT2LMHeadModel."),
        ("FalconForCausalLM", {"vllm_export": "both"}, "takes no LoRA for FalconForCausalLM."),
        ("NewForCausalLM", {}, "does not list NewForCausalLM."),
        (
            "Gemma2ForCausalLM",
            {"target_modules": ["q_proj", "embed_tokens"]},
            "no LoRA on embed_tokens for Gemma2",
        ),
        ("Qwen2ForCausalLM", {"target_modules": ["lm_head"]}, "no LoRA on lm_head for Qwen2"),
        ("LlamaForCausalLM", {"r": 1024}, "Rank 1024 is more than vLLM takes (512)."),
    ],
)
def test_an_adapter_that_no_release_takes_on_its_base_is_known_before_training(
    obstacle, architecture, keys, reason
):
    assert reason in obstacle(architecture, **keys)
    assert obstacle(architecture, **keys | {"vllm_export": "merged"}) is None
    assert obstacle(architecture, **keys | {"lora_post_process_for_vllm": False}) is None


def test_an_adapter_that_some_release_takes_on_its_base_is_let_through(obstacle):
    assert obstacle("Gemma2ForCausalLM", target_modules=["q_proj", "wte"]) is None
    assert obstacle("LlamaForCausalLM", target_modules=["embed_tokens", "lm_head"], r=512) is None
    assert (
        obstacle("LlamaForCausalLM", target_modules="all-linear", r=1024, rank_pattern={"q_proj": 8}) is None
    )
    assert obstacle("Gemma4ForConditionalGeneration") is None
