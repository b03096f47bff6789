"""What the pages of docs/ name is there: files, make targets, commands, config keys; and their Python runs."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from airflow_provider_sft.cli import build_parser
from airflow_provider_sft.contract.schema import config_keys

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
LINKS = [(name, link) for name, text in PAGES.items() for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
PYTHON = [
    (name, code)
    for name, text in PAGES.items()
    for code in re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_link_of_a_page_leads_to_a_file(page, link):
    assert (ROOT / "docs" / link).exists()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_page_is_reached_from_the_index(page):
    assert page == "README.md" or f"({page})" in PAGES["README.md"]


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_of_a_page_is_python(page, code):
    assert ast.parse(re.sub(r"^ {2}", "", code, flags=re.MULTILINE) if code.startswith("  ") else code)


@pytest.mark.parametrize(("page", "code"), [(page, code) for page, code in PYTHON if "with DAG(" in code])
def test_dag_of_a_page_is_a_dag_file(page, code, tmp_path):
    path = tmp_path / "snippet.py"
    path.write_text(code, encoding="utf-8")
    assert runpy.run_path(str(path))


@pytest.mark.parametrize("page", sorted(PAGES))
def test_page_names_only_make_targets_that_exist(page):
    named = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", PAGES[page], re.MULTILINE)
    assert {first or second for first, second in named} <= TARGETS


@pytest.mark.parametrize("page", sorted(PAGES))
def test_page_names_only_commands_that_exist(page):
    (commands,) = (action.choices for action in build_parser()._actions if action.choices)
    assert set(re.findall(r"sft-config ([a-z-]+)", PAGES[page])) <= set(commands)


@pytest.mark.parametrize("name", ["getting-started.md", "vllm.md", "data.md", "sizing.md"])
def test_page_names_only_config_keys_that_exist(name):
    keys = set(re.findall(r'^ *"([a-z_]+)": ', PAGES[name], re.MULTILINE)) - {"input_ids"}
    assert keys <= config_keys().keys()
