"""On whatever Airflow this runs: `python -m tools.compat 2.11.2` runs it on Airflow 2."""

from pathlib import Path

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_sft.decorators.sft import sft_task
from airflow_provider_sft.groups import sft_tuning_group
from airflow_provider_sft.operators import LocalSFTTrainerOperator

DAGS = Path(__file__).parents[2] / "dags"


def load_dag_bag():
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 2
        from airflow.models.dagbag import DagBag

        return DagBag(DAGS, include_examples=False)
    return DagBag(DAGS)


def test_example_dags_are_parsed():
    bag = load_dag_bag()
    assert bag.import_errors == {}
    assert set(bag.dags) == {path.stem for path in DAGS.glob("*.py")}


def test_task_sft_makes_a_task():
    def make_config():
        return {}

    with DAG("d", schedule=None) as dag:
        sft_task(make_config, image="i", task_id="tune")()
    assert dag.task_dict["tune"].custom_operator_name == "@task.sft"


def test_tuning_group_is_a_chain():
    with DAG("d", schedule=None) as dag:
        sft_tuning_group(
            operator_class=LocalSFTTrainerOperator, config={"output_dir": "/o"}, at_most={"x": 1}
        )
    assert dag.task_dict["tuning.gate"].upstream_task_ids == {"tuning.tune"}
    assert dag.task_dict["tuning.tune"].upstream_task_ids == {"tuning.check_data"}
