"""What the export leaves on disk: P2 to P6 of the fault matrix, and the errors of a wrong record or a torn file."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from airflow_provider_sft.contract.adapter_files import read_tensor_file
from airflow_provider_sft.contract.errors import ExportError, LockedError, NotFoundError, StorageFullError
from tests.trainer.export.adapters import file_bytes, tensor_header, write_record
from tests.trainer.export.handmade import VOCABULARY, make_adapter, make_base
from trainer.export import export_checkpoints, export_for_vllm
from trainer.export.switch import exclusive

EXPORTED = ("adapter_config.json", "adapter_model.safetensors", "new_embeddings.safetensors")


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base):
    return make_adapter(tmp_path / "adapter", base)


def test_export_run_twice_gives_identical_bytes(adapter):
    export_for_vllm(adapter, num_new_tokens=3)
    once = file_bytes(adapter)
    export_for_vllm(adapter, num_new_tokens=3)
    assert file_bytes(adapter) == once


def test_export_of_two_copies_gives_identical_bytes(adapter, tmp_path):
    copy = shutil.copytree(adapter, tmp_path / "copy")
    export_for_vllm(adapter, num_new_tokens=3)
    export_for_vllm(copy, num_new_tokens=3)
    assert file_bytes(copy) == file_bytes(adapter)


def test_export_keeps_lora_bytes_dtype_and_format(adapter):
    before = (adapter / "adapter_model.safetensors").read_bytes()
    export_for_vllm(adapter, num_new_tokens=3)
    after = (adapter / "adapter_model.safetensors").read_bytes()
    assert b'"__metadata__":{"format":"pt"}' in after
    assert before[-128:] == after[-128:]
    assert set(tensor_header(adapter / "new_embeddings.safetensors").values()) == {("BF16", (3, 8))}


def test_safetensors_reads_what_was_written_in_the_same_order_as_it_writes(adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    export_for_vllm(adapter, num_new_tokens=3)
    for name in EXPORTED[1:]:
        save_file(load_file(adapter / name), tmp_path / name, metadata={"format": "pt"})
        assert tensor_header(tmp_path / name) == tensor_header(adapter / name)
        assert list(tensor_header(tmp_path / name)) == list(tensor_header(adapter / name))
        assert _without_blanks(tmp_path / name) == _without_blanks(adapter / name)


def _without_blanks(path):
    """Header and data; how far the header is filled up with blanks is nobody's business but the pages'."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end].rstrip(b" "), content[end:]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("num_new_tokens", [0, 3])
def test_exported_files_open_to_whom_the_umask_allows(tmp_path, base, umask, num_new_tokens):
    adapter = make_adapter(tmp_path / "adapter", base, grown_to=VOCABULARY + 3 if num_new_tokens else None)
    code = "import os, sys; os.umask(int(sys.argv[1])); from trainer.export.__main__ import main; main(sys.argv[2:])"
    arguments = [str(umask), str(adapter), "--num-new-tokens", str(num_new_tokens)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    modes = {stat.S_IMODE((adapter / name).stat().st_mode) for name in EXPORTED if (adapter / name).exists()}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize("num_new_tokens", [-1, "3", None, True, 2.0])
def test_a_record_that_is_no_count_is_refused(adapter, num_new_tokens):
    write_record(adapter, num_new_tokens, VOCABULARY + 3)
    with pytest.raises(ExportError, match="num_new_tokens is .* Give the rows by which the vocabulary grew"):
        export_for_vllm(adapter)


def test_a_missing_record_is_refused_by_name(adapter):
    with pytest.raises(ExportError, match="added_tokens_info.json does not exist"):
        export_for_vllm(adapter)


@pytest.mark.parametrize(("num_new_tokens", "expected"), [(0, "Give 3"), (2, "Give 3"), (4, "Give 3")])
def test_a_count_that_is_not_the_growth_is_refused(adapter, num_new_tokens, expected):
    before = file_bytes(adapter)
    with pytest.raises(ExportError, match=expected):
        export_for_vllm(adapter, num_new_tokens=num_new_tokens)
    assert file_bytes(adapter) == before


def test_a_count_against_the_record_is_refused(adapter):
    write_record(adapter, 3, VOCABULARY + 3)
    with pytest.raises(ExportError, match="says 3 new tokens and --num-new-tokens 2"):
        export_for_vllm(adapter, num_new_tokens=2)


def test_another_count_for_an_exported_adapter_is_refused(adapter):
    export_for_vllm(adapter, num_new_tokens=3)
    with pytest.raises(ExportError, match="says 3 new tokens and --num-new-tokens 0"):
        export_for_vllm(adapter, num_new_tokens=0)


def test_added_tokens_without_saved_embeddings_are_refused_with_the_reason(tmp_path, base):
    adapter = make_adapter(tmp_path / "adapter", base, grown_to=None)
    with pytest.raises(ExportError, match="save_embedding_layers=True"):
        export_for_vllm(adapter, num_new_tokens=3)


def test_a_checkpoint_stays_as_it_is_and_gets_its_export_beside_it(tmp_path, base):
    checkpoints = [make_adapter(tmp_path / f"checkpoint-{step}", base) for step in (10, 20)]
    for checkpoint in checkpoints:
        (checkpoint / "trainer_state.json").write_text("{}")
    before = [file_bytes(checkpoint) for checkpoint in checkpoints]
    outcomes = export_checkpoints(checkpoints, num_new_tokens=3)
    assert [file_bytes(checkpoint) for checkpoint in checkpoints] == before
    assert [outcome.model_path for outcome in outcomes] == [
        tmp_path / "vllm" / f"checkpoint-{n}" for n in (10, 20)
    ]
    assert (tmp_path / "vllm" / "checkpoint-10" / "new_embeddings.safetensors").exists()


@pytest.mark.parametrize("cut", [5, 100, -1])
def test_a_file_cut_short_is_refused(adapter, cut):
    content = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(content[:cut])
    with pytest.raises(ExportError, match=r"adapter_model.safetensors is (no safetensors file|cut short)"):
        export_for_vllm(adapter, num_new_tokens=3)


def test_a_header_that_points_outside_is_refused(adapter):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]}}).encode()
    (adapter / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ExportError, match="'x' ends beyond it"):
        export_for_vllm(adapter, num_new_tokens=0)


def test_a_pickled_adapter_is_refused(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ExportError, match="Load the adapter with PEFT and save it again"):
        export_for_vllm(adapter, num_new_tokens=0)


def test_a_prompt_tuned_adapter_is_refused(adapter):
    (adapter / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    with pytest.raises(ExportError, match="holds a PROMPT_TUNING adapter, and vLLM loads LoRA alone"):
        export_for_vllm(adapter, num_new_tokens=0)


def test_a_directory_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="is no directory"):
        export_for_vllm(tmp_path / "nothing", num_new_tokens=0)


def test_a_whole_model_needs_nothing(base):
    before = file_bytes(base)
    outcome = export_for_vllm(base)
    assert (outcome.model_kind, outcome.files) == ("full", [])
    assert [verdict["verdict"] for verdict in outcome.vllm_verdict] == ["loads_right"]
    assert file_bytes(base) == before


def test_a_second_export_at_once_is_locked_out(adapter):
    with exclusive(adapter), pytest.raises(LockedError, match="Another export runs"):
        export_for_vllm(adapter, num_new_tokens=3)


def test_a_full_volume_leaves_the_old_adapter(adapter, monkeypatch):
    before = file_bytes(adapter)
    for call in ("copy_file_range", "write"):
        monkeypatch.setattr(os, call, full_volume)
    with pytest.raises(StorageFullError, match=r"No space left .* the export needs up to 0\.00 GB"):
        export_for_vllm(adapter, num_new_tokens=3)
    assert file_bytes(adapter) == before


def full_volume(*_: object, **__: object) -> None:
    raise OSError(28, os.strerror(28))


def test_an_adapter_behind_symlinks_is_exported_and_its_targets_stay(adapter, tmp_path):
    """As in the Hub's cache."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in adapter.iterdir():
        (linked / path.name).symlink_to(path)
    before = file_bytes(adapter)
    export_for_vllm(linked, num_new_tokens=3)
    assert file_bytes(adapter) == before
    assert not (linked / "adapter_model.safetensors").is_symlink()
    assert (linked / "new_embeddings.safetensors").exists()


def test_kept_bytes_fall_on_pages_as_they_did(adapter, tmp_path):
    name = "adapter_model.safetensors"
    export_for_vllm(adapter, num_new_tokens=3, target_dir=tmp_path / "out")
    before, after = (read_tensor_file(directory / name).tensors for directory in (adapter, tmp_path / "out"))
    assert {(before[tensor].begin - after[tensor].begin) % 4096 for tensor in after} == {0}
