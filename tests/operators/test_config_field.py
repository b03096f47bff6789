import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_sft.failures import ConfigFailure
from airflow_provider_sft.operators import LocalSFTTrainerOperator
from tests.operators.task import make_context, make_operator, render

BASE = {"model_name_or_path": "/m", "training_data_path": "/d.jsonl", "output_dir": "/o"}
RUN_ID = "manual__2026-01-01T00:00:00+00:00"


def rendered(config, *, folder=None, native=False, context=(), **kwargs):
    operator = make_operator(LocalSFTTrainerOperator, folder, config=config, **kwargs)
    operator.dag.render_template_as_native_obj = native
    return render(operator, make_context(operator, **dict(context))).config


def test_config_only_listed_keys_are_templated():
    config = {**BASE, "output_dir": "/o/{{ run_id }}", "response_template": "{{ run_id }}"}
    assert rendered(config) == {**config, "output_dir": f"/o/{RUN_ID}"}


def test_config_keys_to_template_are_the_users_choice():
    config = {**BASE, "output_dir": "/o/{{ run_id }}", "run_name": "{{ run_id }}"}
    assert rendered(config, templated_config_keys=["run_name"]) == {**config, "run_name": RUN_ID}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    "value", ["a\n", "{{", "{# x #}", "{% raw %}", "[1]", "None", "1e-5", "ünï 字", " x ", "{'a': 1}"]
)
def test_config_value_of_another_key_arrives_unchanged(value, native):
    assert rendered({**BASE, "response_template": value}, native=native)["response_template"] == value


@pytest.mark.parametrize("value", ["/data\n", "[1]", "None"])
def test_config_listed_key_without_a_template_arrives_unchanged(value):
    assert rendered({**BASE, "output_dir": value}, native=True)["output_dir"] == value


def test_config_numbers_lists_and_nested_values_stay_what_they_are():
    config = {
        **BASE,
        "learning_rate": 1e-5,
        "target_modules": ["q", "v"],
        "accelerate_launch_args": {"quiet": True},
    }
    assert rendered(config) == config


def test_config_paths_may_be_path_objects():
    assert rendered({**BASE, "output_dir": Path("/o")})["output_dir"] == "/o"


def test_config_text_is_parsed_and_its_listed_keys_templated():
    config = rendered(json.dumps({**BASE, "output_dir": "/o/{{ run_id }}", "response_template": "{{ x }}"}))
    assert (config["output_dir"], config["response_template"]) == (f"/o/{RUN_ID}", "{{ x }}")


def test_config_file_beside_the_dag_is_read_as_data(tmp_path):
    (tmp_path / "tune.json").write_text(json.dumps({**BASE, "response_template": "{{ x }}\n"}))
    assert rendered("tune.json", folder=tmp_path)["response_template"] == "{{ x }}\n"


def test_config_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigFailure, match=r"'tunee.json' is neither JSON text nor a file beside the DAG"):
        rendered("tunee.json", folder=tmp_path)


def test_config_template_may_give_the_whole_config():
    params = {**BASE, "response_template": "<{{ & 'x' }}>\n"}
    config = rendered("{{ params | tojson }}", context={"params": params})
    assert config == params


def test_config_template_in_a_native_dag_may_give_the_whole_config():
    assert rendered("{{ params }}", native=True, context={"params": BASE}) == BASE


def test_config_with_a_key_twice_is_refused():
    with pytest.raises(ConfigFailure, match="'output_dir' appears twice"):
        rendered('{"output_dir": "/a", "output_dir": "/b"}')


@pytest.mark.parametrize("config", ["[1]", 3])
def test_config_that_is_no_object_is_refused(config):
    with pytest.raises(ConfigFailure, match="Give"):
        rendered(config)


def xcom_operator(value, make_config):
    """An operator whose config refers to another task's XCom; and a context in which that XCom is `value`."""
    with DAG("tune_dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):

        @task
        def prepare():
            return value

        operator = LocalSFTTrainerOperator(task_id="tune", config=make_config(prepare()))
    context = make_context(operator)
    context["ti"].xcom_pull = lambda **_: value
    context["ti"].get_relevant_upstream_map_indexes = lambda *_, **__: None  # asked for by Airflow 2
    context["expanded_ti_count"] = None
    return operator, context


def test_config_from_xcom_keeps_types_and_is_not_templated():
    value = {**BASE, "output_dir": "/o/{{ run_id }}", "learning_rate": 1e-5}
    operator, context = xcom_operator(value, lambda prepared: prepared)
    assert operator.upstream_task_ids == {"prepare"}
    assert render(operator, context).config == value


def test_config_value_from_xcom_is_resolved_under_any_key():
    operator, context = xcom_operator(
        7, lambda prepared: {**BASE, "peft": {"r": prepared}, "max_steps": prepared}
    )
    config = render(operator, context).config
    assert (config["peft"], config["max_steps"]) == ({"r": 7}, 7)


def test_config_of_a_mapped_task_is_rendered_like_any_other():
    with DAG("tune_dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        mapped = LocalSFTTrainerOperator.partial(task_id="tune").expand(
            config=[{**BASE, "output_dir": "/o/{{ run_id }}", "learning_rate": rate} for rate in (1e-4, 1e-5)]
        )
    context = make_context(SimpleNamespace(dag_id="tune_dag", task_id="tune", dag=dag), map_index=1)
    context["expanded_ti_count"] = None
    context["dag_run"] = SimpleNamespace(conf={})
    mapped.render_template_fields(context, dag.get_template_env())
    operator = context["task"]
    assert (operator.config["output_dir"], operator.config["learning_rate"]) == (f"/o/{RUN_ID}", 1e-5)
