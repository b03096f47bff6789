"""The fixtures of tests/kube/fixtures.py, for the tests beside it; other folders import them the same way."""

from tests.kube.fixtures import airflow, airflow_database, kube

__all__ = ["airflow", "airflow_database", "kube"]
