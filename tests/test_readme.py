"""What the README shows works as it stands there."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("code", [code for kind, code in SNIPPETS if kind == "python"])
def test_readme_python_runs_as_a_file(code, tmp_path):
    path = tmp_path / "snippet.py"
    path.write_text(code, encoding="utf-8")
    assert runpy.run_path(str(path))


def test_readme_names_only_make_targets_that_exist():
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", README, re.MULTILINE))
    assert {first or second for first, second in named} <= TARGETS


def test_readme_shows_the_first_command_within_30_lines():
    assert "make demo" in README.splitlines()[:30]


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_readme_link_leads_to_a_file(path):
    assert (ROOT / path).exists()
