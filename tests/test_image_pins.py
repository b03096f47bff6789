"""What the image installs is what is tested: images/requirements-*.txt agree with constraints.txt and pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools.image_pins import CUDA_EXTRAS, pick_cpu_pins, read_requirements

PROJECT = Path(__file__).parents[1]
HASHED = (PROJECT / "images/requirements-cuda.txt").read_text()


def read_pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^\s\\]+)", text, flags=re.MULTILINE))


def test_image_pins_are_the_tested_versions():
    tested, pinned = read_pins((PROJECT / "constraints.txt").read_text()), read_pins(HASHED)
    assert {name: pinned[name] for name in pinned.keys() & tested.keys()} == {
        name: tested[name] for name in pinned.keys() & tested.keys()
    }


@pytest.mark.parametrize("line", read_requirements(CUDA_EXTRAS))
def test_image_pins_hold_what_the_extras_want(line):
    wanted = Requirement(line)
    assert wanted.specifier.contains(Version(read_pins(HASHED)[wanted.name]))


def test_image_pins_have_a_digest_each():
    blocks = re.split(r"\n(?=[a-z0-9])", HASHED.split("\n", 1)[1].strip())
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_cpu_pins_are_the_hashed_ones_without_cuda_and_with_torchs_cpu_build():
    written = (PROJECT / "images/requirements-cpu.txt").read_text()
    assert written.split("\n", 1)[1] == pick_cpu_pins(HASHED)
    assert re.search(r"^torch==[\d.]+\+cpu$", written, flags=re.MULTILINE)
    assert not re.search(r"^(nvidia|cuda|triton)", written, flags=re.MULTILINE)


def test_image_has_no_airflow_pin():
    assert not [name for name in read_pins(HASHED) if "airflow" in name]
