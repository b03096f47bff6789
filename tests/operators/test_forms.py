import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.schema import config_keys
from airflow_provider_sft.forms import make_form, read_form


def filled_in(form, **values):
    params = {name: param.value for name, param in form.items()} | values
    return read_form({"params": params, "run_id": "manual__1"})


def test_form_left_alone_gives_the_defaults_alone():
    form = make_form({"model_name_or_path": "/m", "output_dir": "/o/{run_id}"})
    assert filled_in(form) == {"model_name_or_path": "/m", "output_dir": "/o/manual__1"}


def test_form_gives_what_was_filled_in():
    config = filled_in(make_form(), peft_method="lora", learning_rate=1e-4, target_modules=["q_proj"])
    assert config == {"peft_method": "lora", "learning_rate": 1e-4, "target_modules": ["q_proj"]}


def test_form_takes_any_other_key_as_json():
    assert filled_in(make_form(), more={"warmup_ratio": 0.1}) == {"warmup_ratio": 0.1}


def test_form_refuses_a_key_that_has_a_field_already():
    with pytest.raises(ConfigError, match="learning_rate stands in a field and in 'more'"):
        filled_in(make_form(), learning_rate=1e-4, more={"learning_rate": 1e-5})


def test_form_ignores_fields_that_are_no_config_keys():
    assert filled_in(make_form(), gpus=2, queue="q") == {}


def test_form_values_are_data():
    assert filled_in(make_form(), response_template="{{ var.value.secret }}") == {
        "response_template": "{{ var.value.secret }}"
    }


def test_form_has_sections_switches_and_choices():
    form = make_form()
    assert form["gradient_checkpointing"].schema["type"] == ["boolean", "null"]
    assert form["peft_method"].schema["enum"] == config_keys()["peft_method"]["enum"]
    assert form["learning_rate"].schema["section"] == "Optimiser"
    assert form["more"].schema["type"] == ["object", "null"]


def test_form_of_every_key_of_the_schema_is_one_that_airflow_takes():
    keys = [key for key, prop in config_keys().items() if "x-gone" not in prop]
    DAG("form", schedule=None, params=make_form(keys=keys)).validate()


def test_form_of_an_unknown_key_is_refused():
    with pytest.raises(KeyError, match="learning_rte"):
        make_form({"learning_rte": 1})
