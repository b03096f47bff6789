"""The example DAGs: each is parsed as Airflow parses it, and small enough to be read at a glance."""

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag

DAG_FILES = sorted((Path(__file__).parent.parent / "dags").glob("*.py"))
MAX_LINES = 60


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_dag_file_is_parsed_and_holds_the_dag_it_is_named_after(path):
    bag = DagBag(dag_folder=path, collect_dags=False)
    bag.process_file(str(path))
    assert bag.import_errors == {}
    assert list(bag.dags) == [path.stem]


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_dag_file_is_under_60_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES
