"""Our verdict against what released vLLM's own LoRA code does, on CPU: `make vllm`. Not part of CI.

SFT_VLLM_SOURCES names a directory with one directory a release, `0.33.0/vllm/…`, the Python files of its wheel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_sft.contract.errors import ExportError
from airflow_provider_sft.contract.vllm import judge_adapter
from airflow_provider_sft.contract.vllm_releases import TABLE_FILE, support_of, version_key
from tests.trainer.export.adapters import VOCABULARY, save_adapter, save_base
from trainer.export import export_for_vllm

SOURCES = Path(os.environ.get("SFT_VLLM_SOURCES", ""))
RELEASES = sorted((path.name for path in SOURCES.glob("[0-9]*")), key=version_key) if SOURCES.name else []
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not RELEASES, reason="`make vllm` fetches the wheels and sets SFT_VLLM_SOURCES"
)

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDINGS = ["q_proj", "embed_tokens", "lm_head"]
# Name → how PEFT made the adapter. Each is judged as PEFT saved it and as it was exported.
ADAPTERS = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True},
    "rank 40": {"r": 40},
    "embeddings": {"target_modules": EMBEDDINGS},
    "modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norm": {"modules_to_save": ["norm"]},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "resized": {"grow": 3},
    "resized embeddings": {"grow": 3, "target_modules": EMBEDDINGS},
    "rows": {"trainable_token_indices": [9, 5, 70]},
    "new rows": {"grow": 3, "trainable_token_indices": [96, 97, 98, 4]},
    "patterns": {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"v_proj": 3}},
    "alora": {"alora_invocation_tokens": [1, 2]},
    "pissa": {"init_lora_weights": "pissa"},
    "mixtral": {"target_modules": "all-linear"},
    "mixtral down": {"target_parameters": ["experts.down_proj"]},
    "mixtral gate and up": {"target_parameters": ["experts.gate_up_proj"]},
    "mixtral rslora": {"target_modules": "all-linear", "use_rslora": True},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[dict]:
    root = tmp_path_factory.mktemp("vllm")
    bases = {
        "llama": save_base(root / "base-llama", "llama", attention_bias=True),
        "mixtral": save_base(root / "base-mixtral", "mixtral"),
    }
    return [case for name, lora in ADAPTERS.items() for case in _make_cases(root, bases, name, dict(lora))]


def _make_cases(root: Path, bases: dict[str, Path], name: str, lora: dict) -> list[dict]:
    kind = "mixtral" if name.startswith("mixtral") else "llama"
    saved = save_adapter(bases[kind], root / name, **lora)
    merged = root / f"{name}-merged" if saved.merged else None
    found = [_case(name, saved.directory, bases[kind], merged)]
    exported = shutil.copytree(saved.directory, root / f"{name} exported")
    try:
        export_for_vllm(exported)
    except ExportError:
        return found
    found.append(_case(f"{name}, exported", exported, bases[kind], merged))
    if lora.get("grow"):
        export_for_vllm(saved.directory, mode="both")
        found.append(_case(f"{name}, on the resized base", exported, saved.directory / "base", merged))
    return found


def _case(name: str, adapter: Path, base: Path, merged: Path | None) -> dict:
    copy = adapter.with_name(f"{name} case")
    shutil.copytree(adapter, copy, ignore=shutil.ignore_patterns("base", "merged"))
    return {
        "name": name,
        "adapter": str(copy),
        "base": str(base),
        "merged": str(merged) if merged else "",
        "vocabulary": json.loads((base / "config.json").read_text())["vocab_size"],
        "max_lora_rank": 128,
        "experts": 4 if "mixtral" in name else 0,
    }


def _for_release(case: dict, release: str) -> dict:
    """What the release's worker would derive from the served model: the names it expects, the experts it packs."""
    experts = [f"experts.{expert}.{leaf}" for expert in range(case["experts"]) for leaf in ("w1", "w2", "w3")]
    if not case["experts"] or version_key(release) < (0, 11, 1):
        experts = []
    layers = [f"model.layers.{layer}.block_sparse_moe" for layer in range(2)]
    return case | {
        "expected_modules": [
            *LINEAR,
            "gate",
            "embed_tokens",
            "lm_head",
            *experts,
            *(["experts"] if experts else []),
        ],
        "packed": {
            f"{layer}.experts": [f"{layer}.{name}" for name in experts] for layer in layers if experts
        },
        "old_layout": version_key(release) < (0, 10),
    }


@pytest.fixture(scope="module")
def probe(cases, tmp_path_factory):
    """Run a release once over all cases."""
    reports: dict[str, dict] = {}

    def get(release: str) -> dict:
        if release not in reports:
            file = tmp_path_factory.mktemp("cases") / "cases.json"
            file.write_text(json.dumps([_for_release(case, release) for case in cases]))
            command = [sys.executable, "-m", "tests.vllm.probe", str(SOURCES / release), str(file)]
            done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            reports[release] = json.loads(done.stdout.splitlines()[-1])
        return reports[release]

    return get


@pytest.mark.parametrize("release", RELEASES)
def test_the_release_agrees_with_our_verdict_on_every_adapter(probe, cases, release):
    report = probe(release)
    print(f"\nvLLM {release}: real {', '.join(report['real'])}")
    print(f"  not in this release: {', '.join(report['absent'])}")
    print(f"  could not be imported: {report['failed'] or 'nothing'}")
    print(f"  stood in for: {', '.join(report['stood_in'])}")
    differing = {}
    for case in cases:
        ours, theirs = _verdict_for(case, release), report["outcomes"][case["name"]]
        print(f"  {case['name']:34} ours {ours:12} theirs {theirs['outcome']:12} {theirs['why'][:110]}")
        if not _agree(ours, theirs["outcome"]):
            differing[case["name"]] = (ours, theirs)
    assert differing == {}


def _verdict_for(case: dict, release: str) -> str:
    (verdict,) = judge_adapter(Path(case["adapter"]), base=Path(case["base"]), release=release)
    return verdict["verdict"]


def _agree(ours: str, theirs: str) -> bool:
    """`loads_right` must be exactly that. What is not right may fail either way: loudly is no worse."""
    return ours == theirs or (ours == "loads_wrong" and theirs == "rejected")


@pytest.mark.parametrize("release", RELEASES)
def test_the_release_was_tried_with_its_own_acceptance_code(probe, release):
    real = set(probe(release)["real"])
    assert {"vllm.lora.peft_helper", "vllm.lora.utils"} <= real
    assert real & {"vllm.lora.lora_weights", "vllm.lora.lora"}
    assert real & {"vllm.lora.lora_model", "vllm.lora.models"}


@pytest.mark.parametrize("release", RELEASES)
def test_the_table_has_every_architecture_of_the_releases_registry(release):
    """Read as text, not by the reader that makes the table."""
    text = (SOURCES / release / "vllm" / "model_executor" / "models" / "registry.py").read_text()
    listed = set(re.findall(r'^    "(\w+)": ?\(', text, re.MULTILINE))
    table = json.loads(TABLE_FILE.read_text())
    column = table["releases"].index(release)
    assert len(listed) > 100
    assert listed == {name for name, codes in table["architectures"].items() if codes[column] != "-"}


def test_ranges_cover_the_newest_release():
    assert support_of("LlamaForCausalLM", RELEASES[-1]).embeddings == {"embed_tokens", "lm_head"}
    assert VOCABULARY == 96
