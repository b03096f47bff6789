import pytest

from airflow_provider_sft.contract.errors import ExportError
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
    (LORA | {"init_lora_weights": "pissa", "vllm_export": "merged"}, "init_lora_weights 'pissa'"),
]
POSSIBLE = [
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
