"""What is in the image, and the seed's flow in it: arbitrary UID, read-only root, no capabilities, no network."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.image.podman import VARIANT, restrict
from trainer.checkpoints import find_flaw

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]
OUTPUT_DIR = "/output/llama-13b-ft-multigpu"


def run_inside(podman, image: str, *command: str, check: bool = True) -> str:
    done = podman(
        "run",
        "--rm",
        *restrict(user=1000650000),
        "--entrypoint",
        command[0],
        image,
        *command[1:],
        check=check,
    )
    return done.stdout + done.stderr


def test_check_prints_versions_and_readiness(podman, image):
    checked = podman(
        "run", "--rm", *restrict(user=1000650000), "--tmpfs", "/tmp:mode=1777", image, "check"
    ).stdout
    print(checked)
    for subject in (
        "versions: torch 2.",
        "GPUs: none is visible",
        "FSDP: FSDP2 shards over gloo",
        "vLLM export: ",
    ):
        assert f"ok    {subject}" in checked


def test_check_without_a_scratch_volume_says_so(podman, image):
    done = podman("run", "--rm", *restrict(user=10001), image, "check", check=False)
    assert done.returncode == 203
    assert "FAIL  files: " in done.stdout
    assert "No usable temporary directory" in done.stdout


def test_image_has_no_airflow(podman, image):
    refused = run_inside(podman, image, "python3", "-c", "import airflow", check=False)
    assert "No module named 'airflow'" in refused
    assert run_inside(podman, image, "ls", "/opt/sft/airflow_provider_sft").split() == [
        "__init__.py",
        "__pycache__",
        "contract",
    ]


@pytest.mark.parametrize("program", ["gcc", "cc", "clang", "c++", "ld", "make", "pip", "pip3", "git", "nvcc"])
def test_image_has_no_build_tool(podman, image, program):
    found = run_inside(podman, image, "sh", "-c", f"command -v {program} || echo none")
    assert found.strip() == "none"


def test_image_holds_no_cache_of_a_package_manager(podman, image):
    assert not run_inside(
        podman, image, "sh", "-c", "ls -A /var/lib/apt/lists /var/cache | grep -v :$ || true"
    ).strip()
    assert not run_inside(podman, image, "sh", "-c", "find /opt /tmp -name '*.whl' -o -name '.cache'").strip()


def test_image_imports_from_bytecode_alone(podman, image):
    count = "find /opt -name '*.py' -path '*/{}/*' | wc -l; find /opt -name '*.pyc' -path '*/{}/*' | wc -l"
    sources, compiled = run_inside(podman, image, "sh", "-c", count.format("trainer", "trainer")).split()
    assert int(sources) == int(compiled) > 50


def test_image_runs_under_tini_as_a_numeric_user_and_says_what_it_is(podman, image):
    config = json.loads(podman("inspect", image).stdout)[0]["Config"]
    assert config["User"] == "10001:0"
    assert config["Entrypoint"][0] == "/usr/bin/tini"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"].endswith(f"-{VARIANT}")
    assert len(labels["org.opencontainers.image.revision"]) == 40


@pytest.mark.parametrize("user", [10001, 1000650000])
def test_lora_tuning_with_mounted_config(run, seed_config, user):
    started = time.time()
    container = run(seed_config, "--env", "HF_HUB_OFFLINE=1", user=user)
    losses = [step["loss"] for step in container.progress]
    assert losses[-1] < losses[0] * 0.9
    assert container.message["status"] == "succeeded"
    assert container.message["model_kind"] == "adapter"
    output = container.path(OUTPUT_DIR)
    assert json.loads((output / "result.json").read_text())["steps"] == 8
    assert (output / "adapter_model.safetensors").stat().st_uid == user
    print(f"UID {user}: {seconds_to_first_step(container, started):.1f} s from podman run to the first step")


def seconds_to_first_step(container, started: float) -> float:
    """The file logger's first line has the time of the first step, by the clock that this host shares."""
    first = (container.path(OUTPUT_DIR) / "training_logs.jsonl").read_text().splitlines()[0]
    return datetime.fromisoformat(json.loads(first)["data"]["timestamp"]).timestamp() - started


def test_model_that_this_uid_may_not_read_ends_with_77(run, seed_config, tiny_model_dir):
    """As safetensors leaves it: mode 0600, of another user."""
    config = seed_config | {"model_name_or_path": "/private"}
    container = run(config, "-v", f"{tiny_model_dir}:/private:ro", code=77)
    assert "Permission denied (/private/model.safetensors)" in container.message["reason"]


def test_sigterm_saves_and_the_next_run_resumes(start, run, seed_config):
    container = start(seed_config | {"max_steps": 400, "save_steps": 400})
    output = container.path(OUTPUT_DIR)
    wait_for(output / "progress.json")
    assert container.stop() == 206, container.output[-4000:]
    saved = container.message["last_checkpoint_step"]
    assert 0 < saved < 400
    assert find_flaw(output / f"checkpoint-{saved}") is None
    resumed = run(seed_config | {"max_steps": 400, "save_steps": 400})
    assert resumed.message["resumed_from_step"] == saved


def test_wrong_config_ends_with_64_and_the_sentence_in_the_termination_file(run, seed_config):
    container = run(seed_config | {"learning_rte": 1e-5}, code=64)
    sentence = "Unknown config key 'learning_rte'. Did you mean 'learning_rate'?"
    assert sentence in container.message["reason"]
    assert sentence in container.output


def test_memory_limit_ends_the_run_and_leaves_the_last_checkpoint_whole(start, seed_config, run_dir):
    """Evaluating 20,000 rows in one batch needs gigabytes: the limit is hit after checkpoint 4."""
    big = {"eval_strategy": "steps", "eval_steps": 6, "per_device_eval_batch_size": 20_000}
    (run_dir / "output" / "eval.json").write_text(
        (run_dir / "data" / "twitter_complaints.json").read_text() * 320
    )
    container = start(
        seed_config | big | {"validation_data_path": "/output/eval.json"},
        "--memory",
        "1600m",
        "--memory-swap",
        "1600m",
    )
    code = container.wait()
    assert code in (137, 202), container.output[-4000:]
    print(f"memory limit: exit code {code}, {container.message['reason'] if code == 202 else ''}")
    assert find_flaw(container.path(OUTPUT_DIR) / "checkpoint-4") is None
    assert not (container.path(OUTPUT_DIR) / ".complete").exists()


def wait_for(path: Path, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.1)


def test_seed_docker_run_line_as_it_stands(podman, image, run_dir, model_dir, seed_config):
    """No user, no scratch volume, no output volume: the model lands in the container."""
    config = run_dir / "config.json"
    config.write_text(json.dumps(seed_config))
    mounts = [
        *("-v", f"{config}:/app/config.json", "-v", f"{model_dir}:/model"),
        *("-v", f"{run_dir}/data/twitter_complaints.json:/data/twitter_complaints.json"),
    ]
    podman("run", "--rm", *mounts, "--env", "SFT_TRAINER_CONFIG_JSON_PATH=/app/config.json", image)


def test_c_compiler_stand_in_refuses_what_it_cannot_hand_out(podman, image):
    refused = run_inside(podman, image, "sh", "-c", "$CC hello.c -o /tmp/hello", check=False)
    assert "This image has no C compiler" in refused
