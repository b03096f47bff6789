"""What docs/jobs.md promises: rights that are just enough, and DAGs that build what they say."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from tests.jobs.controllers import Controllers, Kueue
from tests.jobs.desk import ENGINES
from tests.jobs.test_kfto import KFTO_JOB, missing_fields
from tests.kube import faults
from tests.operators.cluster import CONFIG, tune

TEXT = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
MANIFESTS = [
    manifest
    for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for manifest in yaml.safe_load_all(block)
]
DAGS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
# What one engine has to itself.
OWN = {
    "job": {"jobs.batch", "services"},
    "jobset": {"jobsets.jobset.x-k8s.io"},
    "pytorchjob": {"pytorchjobs.kubeflow.org"},
    "trainjob": {"trainjobs.trainer.kubeflow.org", "trainingruntimes.trainer.kubeflow.org"},
}


def granted(engine):
    [role] = [manifest for manifest in MANIFESTS if manifest["kind"] == "Role"]
    others = set().union(*(own for name, own in OWN.items() if name != engine))
    rights = {
        (verb, f"{resource}.{group}".rstrip("."))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    return {(verb, resource) for verb, resource in rights if resource not in others}


@ENGINES
def test_documented_role_is_what_an_engine_uses_and_no_more(desk, engine):
    desk.kube.inject(faults.Unschedulable(for_s=4))
    refused = "/(jobs|jobsets|pytorchjobs|trainjobs)"
    desk.kube.inject(faults.HttpError(path=refused, method="POST", status=422))
    long = {**CONFIG, "chat_template": "é" * 60_000}
    with Controllers(desk.kube, engine, kueue=Kueue(preempt=1)):
        job = {"engine": engine, "config": long, "num_nodes": 2, "queue_name": "lq", "stand_in_steps": 100}
        assert tune(desk.stand_in(deferrable=True, **job))[1].state == "failed"
        outcome, task = tune(desk.stand_in(deferrable=True, **job))
    assert task.state == "success", outcome.log
    used = {(request.verb, request.resource) for request in desk.kube.requests if request.verb}
    assert used == granted(engine)
    assert desk.config_maps() == []  # neither the refused job's nor the finished one's is left


def load_task(code, tmp_path):
    path = tmp_path / "dag.py"
    path.write_text(code, encoding="utf-8")
    names = runpy.run_path(str(path))
    dag = next(value for value in names.values() if hasattr(value, "task_dict"))
    return dag.get_task("tune")


@pytest.fixture
def documented(tmp_path):
    """The tasks of the page's DAGs by DAG id; in the test, Airflow's context manager keeps the DAG."""
    named = [re.sub(r"with DAG\((.*)\):", r"with DAG(\1) as dag:", code) for code in DAGS]
    tasks = [load_task(code, tmp_path) for code in named]
    return {task.dag_id: task for task in tasks}


def test_page_has_a_dag_for_each_engine(documented):
    assert {task.engine for task in documented.values()} == {"auto", *OWN}


def test_kfto_dag_of_the_page_builds_the_kfto_example(documented):
    from airflow_provider_sft.engines.registry import ENGINES

    task = documented["kfto"]
    task.random_name_suffix, task.namespace = False, "tuning"
    (job,) = task.build_manifests(ENGINES["pytorchjob"], task.build_pod_request_obj(dry_run=True))
    # The short form of volumes mounts the whole ConfigMap, which holds the one file.
    assert [miss for miss in missing_fields(KFTO_JOB, job) if "volumes[3]" not in miss] == []
