"""`make image-test`: the CPU image is built once, then run with what a pod would mount."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.image.podman import Container, Podman, restrict

_numbers = itertools.count()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Minutes of building and root: only who asks with `-m image` gets these."""
    if "image" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("image")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def podman(shared_dir: Path) -> Podman:
    assert shutil.which("podman"), (
        "podman is missing: apt-get install podman buildah runc debootstrap catatonit"
    )
    return Podman(shared_dir)


@pytest.fixture(scope="session")
def image(podman: Podman) -> str:
    return podman.build()


@pytest.fixture
def seed_config() -> dict:
    """The seed's config in the container's paths, as LoRA, small enough for a CPU."""
    return {
        "model_name_or_path": "/model",
        "training_data_path": "/data/twitter_complaints.json",
        "output_dir": "/output/llama-13b-ft-multigpu",
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "response_template": "\n### Label:",
        "dataset_text_field": "output",
        "lora_post_process_for_vllm": True,
        "peft_method": "lora",
        "torch_dtype": "float32",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 4,
        "generate_samples": 0,
    }


@pytest.fixture(scope="session")
def model_dir(tiny_model_dir: Path, shared_dir: Path) -> Path:
    """The tiny model, readable to every UID: safetensors writes 0600."""
    directory = shared_dir / "image-model"
    shutil.copytree(tiny_model_dir, directory)
    for file in directory.iterdir():
        file.chmod(0o644)
    return directory


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """What a pod mounts: directories of root's group, as fsGroup and OpenShift give them."""
    for name in ("output", "tmp", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o775)
    tiny.write_tweets(tmp_path / "data" / "twitter_complaints.json")
    return tmp_path


@pytest.fixture
def start(podman: Podman, image: str, run_dir: Path, model_dir: Path) -> Iterator[Callable[..., Container]]:
    """The seed's `docker run` line, locked down; containers that still run at the end are removed."""
    names: list[str] = []

    def start_container(config: dict, *options: str, user: int = 10001) -> Container:
        (run_dir / "config.json").write_text(json.dumps(config))
        termination_log = run_dir / "termination-log"
        termination_log.touch()
        termination_log.chmod(0o666)
        names.append(f"sft-test-{next(_numbers)}")
        mounts = [
            f"{run_dir}/config.json:/app/config.json:ro",
            f"{model_dir}:/model:ro",
            f"{run_dir}/data/twitter_complaints.json:/data/twitter_complaints.json:ro",
            f"{run_dir}/output:/output",
            f"{run_dir}/tmp:/tmp",
            f"{termination_log}:/dev/termination-log",
        ]
        command = ["run", "--rm", "--name", names[-1], *restrict(user=user)]
        command += [option for mount in mounts for option in ("-v", mount)]
        command += ["--env", "SFT_TRAINER_CONFIG_JSON_PATH=/app/config.json", *options, image]
        return Container(podman, run_dir, podman.start(*command), names[-1])

    yield start_container
    for name in names:
        podman("rm", "-f", "-i", name)


@pytest.fixture
def run(start: Callable[..., Container]) -> Callable[..., Container]:
    def run_container(config: dict, *options: str, code: int = 0, user: int = 10001) -> Container:
        container = start(config, *options, user=user)
        assert container.wait() == code, container.output[-4000:]
        return container

    return run_container
