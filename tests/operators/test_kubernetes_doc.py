"""What docs/kubernetes.md promises: rights that are just enough, and every complaint of checkov explained."""

import re
from pathlib import Path

import pytest
import yaml

from airflow_provider_sft.contract.names import MAX_ENV_CONFIG_BYTES
from tests.kube import faults
from tests.operators.cluster import MODES, tune
from tests.operators.test_kubernetes_config import config_of
from tests.operators.test_pod import SEED_POD, base, build
from tools.checkov import DOCS, read_explained

TEXT = DOCS.read_text(encoding="utf-8")
MANIFESTS = [
    m
    for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for m in yaml.safe_load_all(block)
]


def granted():
    [role] = [manifest for manifest in MANIFESTS if manifest["kind"] == "Role"]
    return {
        (verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    }


@MODES
def test_documented_role_is_what_the_operator_uses_and_no_more(desk, deferrable):
    long = config_of(MAX_ENV_CONFIG_BYTES + 1)
    for config, code in ((long, 0), (long, 65)):
        desk.kube.inject(faults.Unschedulable(for_s=3))
        tune(desk.stand_in(deferrable=deferrable, config=config, stand_in_exit=code))
    used = {(request.verb, request.resource) for request in desk.kube.requests if request.verb}
    assert used == granted()


@MODES
@pytest.mark.parametrize("resource", ["pods/log", "events"])
def test_right_to_read_log_or_events_may_be_missing(desk, deferrable, resource):
    desk.kube.inject(faults.Denied(resource=resource))
    desk.kube.inject(faults.Unschedulable(for_s=3))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=100))
    assert task.state == "success", outcome.log
    assert outcome.log.count("cannot be read") == 1


# What of a pod each check looks at, for those that look at one field.
FAILS = {
    "CKV_K8S_8": lambda pod: "livenessProbe" not in base(pod),
    "CKV_K8S_9": lambda pod: "readinessProbe" not in base(pod),
    "CKV_K8S_14": lambda pod: ":" not in base(pod).get("image", ""),
    "CKV_K8S_15": lambda pod: (
        base(pod)["imagePullPolicy"] != "Always" and "@" not in base(pod).get("image", "")
    ),
    "CKV_K8S_21": lambda pod: pod["metadata"]["namespace"] == "default",
    "CKV_K8S_40": lambda pod: pod["spec"]["securityContext"].get("runAsUser", 0) < 10000,
    "CKV_K8S_43": lambda pod: "@" not in base(pod).get("image", ""),
    "CKV2_K8S_6": lambda pod: True,
}


def failed_checks(**parameters):
    pod = build(**parameters)
    return {name for name, fails in FAILS.items() if fails(pod)}


def test_every_failed_check_of_checkov_is_explained_and_no_other():
    assert set(read_explained()) == failed_checks(config=SEED_POD["config"]) == set(FAILS)


def test_what_the_docs_say_mends_a_check_does_mend_it():
    image = f"registry.example.com/sft-trainer@sha256:{'0' * 64}"
    context = {"runAsUser": 10001}
    mended = {**SEED_POD, "image": image, "namespace": "tuning", "security_context": context}
    assert failed_checks(**mended) == {"CKV_K8S_8", "CKV_K8S_9", "CKV2_K8S_6"}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", TEXT))))
def test_link_leads_to_a_file(path):
    assert (Path(DOCS).parent / path).exists()
