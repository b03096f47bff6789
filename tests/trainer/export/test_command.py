"""`python -m trainer.export`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.trainer.export.handmade import VOCABULARY, make_adapter, make_base


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "adapter", make_base(tmp_path / "base"))


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer.export", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_it_prints_what_was_written_and_the_verdict(adapter):
    done = export(adapter, "--num-new-tokens", 3)
    assert done.returncode == 0
    assert "vLLM ignores new_embeddings.safetensors since 0.12" in done.stdout
    assert "vLLM 0.8.5-0.11.2: loads wrong." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 69, "added_tokens_info.json does not exist"),
        (["--num-new-tokens", "2"], 69, "Give 3"),
        (["--mode", "lora"], 64, "invalid choice: 'lora'"),
        (["--num-new-tokens", "3", "--base", "/nowhere"], 69, "/nowhere holds no config.json"),
    ],
    ids=str,
)
def test_what_goes_wrong_is_a_sentence_and_an_exit_code(adapter, arguments, code, sentence):
    done = export(adapter, *arguments)
    assert (done.returncode, sentence in done.stderr) == (code, True)
    assert "Traceback" not in done.stderr


def test_several_directories_are_exported_at_once(tmp_path):
    base = make_base(tmp_path / "base")
    directories = [make_adapter(tmp_path / name, base) for name in ("one", "two")]
    assert export(*directories, "--num-new-tokens", 3).returncode == 0
    assert all((directory / "new_embeddings.safetensors").exists() for directory in directories)


def test_moving_tensors_imports_neither_torch_nor_numpy(adapter):
    code = (
        "import sys; from trainer.export.__main__ import main; main(sys.argv[1:]);"
        "print({'torch', 'numpy', 'safetensors', 'airflow'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(adapter), "--num-new-tokens", "3"]
    assert subprocess.check_output(command, text=True).splitlines()[-1] == "set()"


def test_a_vocabulary_larger_than_the_base_without_rows_is_seen_by_the_check(tmp_path):
    from airflow_provider_sft.contract.vllm import judge_adapter
    from tests.trainer.export.adapters import write_record

    adapter = make_adapter(tmp_path / "adapter", make_base(tmp_path / "base"), grown_to=None)
    write_record(adapter, 3, VOCABULARY + 3)
    (verdict,) = judge_adapter(adapter)
    assert verdict["verdict"] == "loads_wrong"
    assert verdict["reason"] == "The rows of 3 added tokens are not in the adapter."


def test_an_adapter_from_elsewhere_is_judged_on_the_base_that_the_export_wrote(adapter, tmp_path):
    done = export(adapter, "--num-new-tokens", 3, "--mode", "both", "--output-dir", tmp_path / "out")
    assert done.returncode == 0
    assert "loads right" in done.stdout
    assert "loads wrong" not in done.stdout
    assert not (adapter / "added_tokens_info.json").exists()
    assert (
        json.loads((tmp_path / "out" / "added_tokens_info.json").read_text())["new_embedding_size"]
        == VOCABULARY + 3
    )


def test_advice_of_the_command_names_its_own_flags(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"use_dora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    done = export(adapter, "--num-new-tokens", 3)
    assert (done.returncode, "vllm_export" in done.stderr) == (69, False)
    assert "Use --mode merged" in done.stderr
