"""What the oldest supported JobSet and Kubeflow Trainer take, and what is lost there.

The models of each release stand in published/, written by `python -m tools.trainer_models`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kubeflow_trainer_api import models

from airflow_provider_sft.engines.failure_policy import PERMANENT_CODES
from airflow_provider_sft.engines.older_jobset import LOSS, fit_older_jobset, is_older_jobset
from airflow_provider_sft.engines.registry import ENGINES
from tests.jobs.controllers import Controllers
from tests.jobs.test_manifests import ONE_NODE, TWO_NODES, build
from tests.kube import faults
from tests.operators.cluster import MODES, tune

# Kubeflow Trainer, with the JobSet that it brings along.
NEWER = {"2.1.0": "0.10", "2.2.0": "0.11", "2.3.0": "0.12"}
OLDEST = "2.0.0"  # with JobSet 0.8
ROOTS = {
    "TrainJob": "TrainerV1alpha1TrainJob",
    "TrainingRuntime": "TrainerV1alpha1TrainingRuntime",
    "JobSet": "JobsetV1alpha2JobSet",
}
PATTERNS = "spec.failurePolicy.rules.onJobFailureMessagePatterns"
engines = pytest.mark.parametrize("engine", ["jobset", "trainjob"])
nodes = pytest.mark.parametrize("parameters", [ONE_NODE, TWO_NODES], ids=["1-node", "2-nodes"])


def unknown_fields(manifests, version):
    """What a release's API server, asked to be strict, would refuse."""
    known = json.loads(Path(__file__).with_name("published").joinpath(f"{version}.json").read_text())

    def walk(value, model, path):
        if isinstance(value, list):
            return [found for each in value for found in walk(each, model, path)]
        if model is None or not isinstance(value, dict):
            return []
        strange = [f"{path}.{key}".lstrip(".") for key in value.keys() - known[model].keys()]
        nested = [(key, each) for key, each in value.items() if key in known[model]]
        return strange + [
            found for key, each in nested for found in walk(each, known[model][key], f"{path}.{key}")
        ]

    return [found for manifest in manifests for found in walk(manifest, ROOTS[manifest["kind"]], "")]


@engines
@nodes
@pytest.mark.parametrize("version", NEWER)
def test_release_knows_every_field(engine, parameters, version):
    assert unknown_fields(build(engine, **parameters), version) == []


@engines
@nodes
def test_oldest_release_lacks_one_field_and_nothing_of_what_is_sent_without_it(engine, parameters):
    manifests = build(engine, **parameters)
    [lacking] = unknown_fields(manifests, OLDEST)
    assert lacking.endswith(PATTERNS)
    assert unknown_fields(fit_older_jobset(manifests), OLDEST) == []


@engines
def test_lost_node_of_an_older_jobset_is_no_permanent_failure(engine):
    """Its job must not fail by a rule, or the set's one rule that is left would end the set."""
    fitted = json.dumps(fit_older_jobset(build(engine, **TWO_NODES)))
    assert "DisruptionTarget" not in fitted
    assert '"action": "FailJobSet"' in fitted
    assert json.dumps(PERMANENT_CODES) in fitted


def test_models_beside_the_tests_are_the_published_ones():
    known = json.loads(Path(__file__).with_name("published").joinpath("2.3.0.json").read_text())
    for name, fields in known.items():
        model = vars(models)[name].model_fields
        assert {field.alias or key for key, field in model.items()} == set(fields), name


@engines
def test_page_and_message_name_the_oldest_release(engine):
    page = Path(__file__).parents[2] / "docs" / "jobs.md"
    oldest = {"jobset": "JobSet 0.8 or newer", "trainjob": "Kubeflow Trainer 2.0 or newer"}[engine]
    assert ENGINES[engine].source == oldest
    assert f"| {oldest} |" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("refusal", "older"),
    [
        (
            '400: strict decoding error: unknown field "spec.failurePolicy.rules[0].onJobFailureMessagePatterns"',
            True,
        ),
        ('400: strict decoding error: unknown field "spec.failurePolicy.rules[0].name"', False),
        ("422: spec.failurePolicy.rules[0].onJobFailureMessagePatterns: Invalid value", False),
    ],
)
def test_older_jobset_is_known_by_the_field_that_it_does_not_know(refusal, older):
    assert is_older_jobset(refusal) is older


@MODES
@pytest.mark.parametrize(
    ("engine", "resource", "path"),
    [
        ("jobset", "jobsets", "spec.failurePolicy.rules[0]"),
        ("trainjob", "trainingruntimes", "spec.template.spec.failurePolicy.rules[0]"),
    ],
)
def test_older_jobset_runs_the_job_and_the_log_says_what_is_lost(desk, engine, resource, path, deferrable):
    message = f'strict decoding error: unknown field "{path}.onJobFailureMessagePatterns"'
    desk.kube.inject(faults.HttpError(path=f"/{resource}", method="POST", status=400, message=message))
    with Controllers(desk.kube, engine):
        outcome, task = tune(desk.stand_in(deferrable=deferrable, engine=engine, stand_in_steps=100))
    assert task.state == "success", outcome.log
    assert LOSS in outcome.log
    sent = [
        each.body
        for each in desk.kube.requests
        if each.verb == "create" and each.resource.startswith(resource)
    ]
    assert ["onJobFailureMessagePatterns" in json.dumps(body) for body in sent] == [True, False]
