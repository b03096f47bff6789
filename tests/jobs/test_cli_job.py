import contextlib
import io
import json
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from airflow_provider_sft.cli import main
from airflow_provider_sft.contract.codec import decode_text
from tests.jobs.test_manifests import engines, env, pod_template, trainer
from tests.operators.test_pod import SEED_CONFIG

TOPOLOGY = "cloud.provider.com/topology-rack"
CLUSTER = {
    "--env": "NCCL_IB_HCA=mlx5",
    "--secret": "HF_TOKEN=hub/token",
    "--resource": "rdma/hca=1",
    "--label": "kueue.x-k8s.io/priority-class=research",
    "--annotation": "k8s.v1.cni.cncf.io/networks=rdma-net",
    "--node-selector": "gpu.product=H100",
    "--shm-size": "64Gi",
    "--required-topology": TOPOLOGY,
}
TEMPLATE = """
apiVersion: v1
kind: Pod
spec:
  priorityClassName: low
  containers: [{name: base}]
"""


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run_job(config, *arguments):
    """In this process: each import of Airflow takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["job", file.name, *arguments])
    return Done(code, out.getvalue(), err.getvalue())


def manifests(done):
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def kinds(done):
    return [manifest["kind"] for manifest in manifests(done)]


def run_two_nodes(engine, **options):
    arguments = [
        text for option in {**CLUSTER, **options}.items() if option[1] is not None for text in option if text
    ]
    fixed = ["--image", "i:1", "--name", "t", "--queue-name", "lq", "--num-nodes", "2"]
    return manifests(run_job(SEED_CONFIG, *fixed, "--engine", engine, *arguments))


@pytest.mark.parametrize(
    ("engine", "printed"),
    [
        ("job", ["Service", "Job"]),
        ("pytorchjob", ["PyTorchJob"]),
        ("jobset", ["JobSet"]),
        ("trainjob", ["TrainingRuntime", "TrainJob"]),
    ],
)
def test_job_command_prints_the_manifests_of_an_engine(engine, printed):
    done = run_job(SEED_CONFIG, "--image", "i:1", "--engine", engine, "--num-nodes", "2", "--name", "t")
    assert kinds(done) == printed


def test_job_command_takes_a_job_for_one_node():
    assert kinds(run_job(SEED_CONFIG, "--image", "i:1")) == ["Job"]


def test_job_command_writes_a_long_config_as_a_config_map_first():
    long = {**SEED_CONFIG, "chat_template": "x" * 100_000}
    assert kinds(run_job(long, "--image", "i:1", "--engine", "jobset")) == ["ConfigMap", "JobSet"]


def test_job_command_refuses_a_wrong_config_with_64():
    done = run_job({**SEED_CONFIG, "learning_rte": 1}, "--image", "i:1")
    assert (done.returncode, done.stdout) == (64, "")
    assert "Did you mean 'learning_rate'?" in done.stderr


def test_job_command_refuses_no_nodes_with_64():
    done = run_job(SEED_CONFIG, "--image", "i:1", "--num-nodes", "0")
    assert (done.returncode, done.stdout) == (64, "")
    assert "num_nodes is 0. Give 1 or more." in done.stderr


@engines
def test_job_command_takes_what_the_network_of_several_nodes_needs(engine):
    printed = run_two_nodes(engine)
    container, template = trainer(printed), pod_template(printed)
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert env(printed)["NCCL_IB_HCA"] == "mlx5"
    assert (
        container["resources"]["limits"]["rdma/hca"] == container["resources"]["requests"]["rdma/hca"] == "1"
    )
    assert template["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "rdma-net"
    assert volumes["sft-shm"]["emptyDir"]["sizeLimit"] == "64Gi"


@engines
def test_job_command_takes_where_nodes_are_placed_and_in_which_order(engine):
    printed = run_two_nodes(engine)
    template = pod_template(printed)
    assert printed[-1]["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "research"
    assert template["metadata"]["annotations"]["kueue.x-k8s.io/podset-required-topology"] == TOPOLOGY
    assert template["spec"]["nodeSelector"] == {"gpu.product": "H100"}


def test_job_command_takes_a_secret_by_its_name():
    [token] = [each for each in trainer(run_two_nodes("job"))["env"] if each["name"] == "HF_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


def test_job_command_takes_the_rest_from_a_pod_template(tmp_path):
    (tmp_path / "pod.yaml").write_text(TEMPLATE)
    given = {"--pod-template-file": str(tmp_path / "pod.yaml"), "--service-account-name": "tuner"}
    spec = pod_template(run_two_nodes("job", **given))["spec"]
    assert (spec["priorityClassName"], spec["serviceAccountName"]) == ("low", "tuner")


def test_job_command_takes_images_secrets_and_what_is_known_of_the_model_from_elsewhere():
    given = {"--image-pull-secrets": "registry,mirror", "--model-parameters": "13e9"}
    spec = pod_template(run_two_nodes("job", **given))["spec"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]
    smaller = pod_template(run_two_nodes("job", **{"--model-parameters": "1e9"}))["spec"]
    requests = [
        int(each["containers"][0]["resources"]["requests"]["memory"].removesuffix("Gi"))
        for each in (spec, smaller)
    ]
    assert requests[0] > requests[1]


def test_job_command_prefers_a_topology():
    printed = run_two_nodes("job", **{"--required-topology": None, "--preferred-topology": TOPOLOGY})
    annotations = pod_template(printed)["metadata"]["annotations"]
    assert annotations["kueue.x-k8s.io/podset-preferred-topology"] == TOPOLOGY
    assert "kueue.x-k8s.io/podset-required-topology" not in annotations


def test_job_command_passes_a_key_of_a_newer_image_only_when_it_is_named():
    config = {**SEED_CONFIG, "of_tomorrow": 1}
    assert run_job(config, "--image", "i:1").returncode == 64
    printed = manifests(run_job(config, "--image", "i:1", "--extra-key", "of_tomorrow"))
    assert json.loads(decode_text(env(printed)["SFT_TRAINER_CONFIG_JSON_ENV_VAR"])) == config


@pytest.mark.parametrize("option", [[], ["--allow-remote-code"]])
def test_job_command_allows_a_models_own_code_only_when_told(option):
    printed = manifests(run_job(SEED_CONFIG, "--image", "i:1", *option))
    assert env(printed).get("SFT_ALLOW_REMOTE_CODE") == ("true" if option else None)


def test_job_command_keeps_a_finished_job_as_long_as_it_is_told():
    assert run_two_nodes("job", **{"--keep-finished": "60"})[-1]["spec"]["ttlSecondsAfterFinished"] == 60


def test_job_command_prints_what_an_older_jobset_takes():
    newer, older = run_two_nodes("jobset"), run_two_nodes("jobset", **{"--older-jobset": ""})
    assert ["onJobFailureMessagePatterns" in json.dumps(each) for each in (newer, older)] == [True, False]


@pytest.mark.parametrize(
    ("option", "code", "sentence"),
    [
        (["--env", "NCCL_DEBUG"], 64, "--env is 'NCCL_DEBUG'. Give NAME=VALUE, as in NCCL_IB_HCA=mlx5."),
        (["--secret", "HF_TOKEN=hub"], 64, "secrets['HF_TOKEN'] is 'hub'. Give 'SECRET/KEY'"),
        (["--pod-template-file", "/no/pod.yaml"], 66, "'/no/pod.yaml', which is no file."),
    ],
)
def test_job_command_refuses_a_wrong_option_with_its_value(option, code, sentence):
    done = run_job(SEED_CONFIG, "--image", "i:1", *option)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr


def test_command_of_the_page_prints_the_job_it_speaks_of():
    page = Path(__file__, "../../../docs/jobs.md").resolve().read_text(encoding="utf-8")
    command = re.search(r"^sft-config job config.json (.*?) \| kubectl", page, re.MULTILINE | re.DOTALL)[1]
    [job] = manifests(run_job(SEED_CONFIG, *shlex.split(command.replace("\\\n", " "))))
    [replicated] = job["spec"]["replicatedJobs"]
    container = trainer([job])
    assert (job["kind"], replicated["template"]["spec"]["parallelism"]) == ("JobSet", 2)
    limits = container["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["rdma/hca"]) == ("8", "1")
    assert container["volumeMounts"][0]["mountPath"] == "/data/output"
