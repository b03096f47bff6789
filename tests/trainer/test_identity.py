"""What makes two attempts the same run: every file that shapes it, byte for byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from airflow_provider_sft.contract.errors import NotFoundError
from airflow_provider_sft.contract.schema import config_keys, launch_flags
from tests.trainer.runs import decide, identify, leave_finished, leave_unfinished
from trainer import digests as digests_module
from trainer.data.files import digest_data, locate_data
from trainer.digests import Digests
from trainer.files import digest_json, sha256_file, write_json
from trainer.ownership import Action

MIB = 1 << 20
# Declared paths that are read and still do not shape the run: where it starts from is the user's word each time, and
# hosts are places.


def flip_byte(path, offset=-2):
    """Same length, same mtime; what the file system cannot hide is the ctime."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def model_dir(tiny_model_dir, tmp_path):
    directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (directory / "modeling.py").write_text("# code of a model\n")
    (directory / "merges.txt").write_text("a b\n")
    return directory


def test_every_file_of_a_model_that_is_loaded_is_of_the_identity(lora_config, model_dir):
    config = {**lora_config, "model_name_or_path": str(model_dir)}
    for path in [path for path in sorted(model_dir.rglob("*")) if path.is_file()]:
        before = identify(config)
        flip_byte(path)
        differences = identify(config).differences(before.as_record())
        assert [each.name for each in differences] == [f"model_name_or_path/{path.relative_to(model_dir)}"]


def test_page_beside_a_model_is_not_of_the_identity(lora_config, model_dir):
    config = {**lora_config, "model_name_or_path": str(model_dir)}
    before = identify(config).as_record()
    (model_dir / "README.md").write_text("# About")
    assert identify(config).differences(before) == []


def declared(role):
    keys = {
        key for key, prop in config_keys().items() if prop.get("x-path") == role and "x-moved-to" not in prop
    }
    return keys | {
        f"accelerate_launch_args.{key}" for key, prop in launch_flags().items() if prop.get("x-path") == role
    }


@pytest.mark.parametrize("key", sorted(declared("read") - {"resume_from_checkpoint"}))
def test_key_that_reads_a_file_has_its_content_in_the_identity(lora_config, key, model_dir, tmp_path):
    """Every key that the schema declares: a new one is in this test, and in the identity, without another line."""
    file = tmp_path / "file.jsonl" if key.endswith("data_path") else tmp_path / "file.yaml"
    named = file
    if key == "data_config_path":
        rows = lora_config.pop("training_data_path")
        file.write_text(yaml.safe_dump({"datasets": [{"name": "a", "data_paths": [rows]}]}) + "# 12\n")
    elif key.endswith("data_path"):
        shutil.copy(lora_config["training_data_path"], file)
    elif key.startswith(("model_name", "tokenizer_name")):
        named, file = model_dir, model_dir / "tokenizer.json"
    else:
        file.write_text("num_processes: 1\n# 12\n")
    flag = key.removeprefix("accelerate_launch_args.")
    said = {key: str(named)} if flag == key else {"accelerate_launch_args": {flag: str(named)}}
    before = find(lora_config | said)
    flip_byte(file)
    assert find(lora_config | said) != before


def find(config):
    """As `identify`, without asking whether the run is possible: a key may be refused for other reasons."""
    from airflow_provider_sft.contract.settings import Settings, resolve_config
    from trainer.identity import identify_run

    settings = resolve_config({key: value for key, value in config.items() if key in ("model_name_or_path", "output_dir", "training_data_path", "data_config_path")})  # fmt: skip
    settings = Settings({**settings.values, **config}, frozenset(config), ())
    digests = Digests()
    return identify_run(
        settings, locate_data(settings.values, {}, digests), digests, environ={}, run_id=""
    ).files


def test_nested_path_and_the_template_of_a_data_config_are_of_the_identity(lora_config, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    (tmp_path / "extra.json").write_text("{}")
    data = {"dataprocessor": {"chat_template_path": str(tmp_path / "t.jinja")}}
    data["datasets"] = [{"name": "a", "data_paths": [lora_config.pop("training_data_path")]}]
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    config = {**lora_config, "data_config_path": str(tmp_path / "data.yaml")}
    config["model_init_kwargs"] = {"extra_file": str(tmp_path / "extra.json")}
    for name in ("t.jinja", "extra.json"):
        before = identify(config).as_record()
        flip_byte(tmp_path / name)
        assert len(identify(config).differences(before)) == 1


def test_data_and_model_under_another_path_are_the_same_run(lora_config, model_dir, tmp_path):
    before = identify({**lora_config, "model_name_or_path": str(model_dir)}).as_record()
    model_dir.rename(tmp_path / "mounted-elsewhere")
    rows = shutil.copy(lora_config["training_data_path"], tmp_path / "renamed.jsonl")
    moved = {
        **lora_config,
        "model_name_or_path": str(tmp_path / "mounted-elsewhere"),
        "training_data_path": str(rows),
    }
    assert identify(moved).differences(before) == []


@pytest.mark.parametrize("offset", [0, 33 * MIB + 5, 100 * MIB, 130 * MIB - 1])
def test_byte_anywhere_in_a_large_file_changes_its_digest(tmp_path, offset):
    path = tmp_path / "rows.jsonl"
    path.touch()
    os.truncate(path, 130 * MIB)
    before = Digests().of([path])
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"x")
    assert Digests().of([path]) != before


def test_digest_of_data_sees_a_byte_beyond_any_sample(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.touch()
    os.truncate(path, 130 * MIB)
    before = digest_data(locate_data({"training_data_path": str(path)}, {}))
    flip_byte(path, 90 * MIB + 7)
    assert digest_data(locate_data({"training_data_path": str(path)}, {})) != before


def test_unchanged_file_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    monkeypatch.setattr(digests_module, "_SETTLED_S", -60.0)
    first = Digests()
    expected = first.of([path])
    first.write(tmp_path)
    path.chmod(0o200)  # it can be looked at, and for all but root not be read
    monkeypatch.setattr(digests_module, "_digest_block", pytest.fail)
    stored = Digests.read(tmp_path, lambda: None)
    stored._known[str(path)]["signature"] = digests_module.read_signature(path)
    assert stored.of([path]) == expected


def test_file_that_was_just_written_is_not_trusted_by_its_times(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    digests = Digests()
    digests.of([tmp_path / "rows.jsonl"])
    digests.write(tmp_path)
    assert Digests.read(tmp_path, lambda: None)._known == {}


def test_touched_file_passes_and_a_changed_one_does_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    digests = Digests()
    digests.of([path])
    path.touch()
    digests.refuse_changed(path)
    path.write_text("[]")
    with pytest.raises(NotFoundError, match="rows.jsonl has changed since this attempt began"):
        digests.refuse_changed(path)


# Directories of the first version of the identity's rule, as they were written before it had one.


def write_v1_record(out, config, run_id):
    """The rule as it was, with nothing of ours: two JSON dumps and SHA-256."""
    kept = {key: value for key, value in config.items() if key not in ("report", "generate_samples")}
    model = {
        path.name: sha256_file(path)
        for path in sorted(Path(config["model_name_or_path"]).iterdir())
        if path.suffix in (".json", ".safetensors", ".model")
    }
    spec = {"name": "training_data", "train": 1.0, "validation": 0.0, "sampling": None, "builder": None}
    spec |= {"split_name": "train", "shuffle": True, "handlers": None}
    plan = {"datasets": [spec], "streaming": False, "stopping_strategy": "all_exhausted", "seed": 42}
    source = digest_json([None, sha256_file(Path(config["training_data_path"]))])
    record = {"config_sha256": digest_json(kept), "base_model_sha256": digest_json(model), "run_id": run_id}
    record["data_sha256"] = digest_json([{**plan, "chat_template": None}, source])
    write_json(out / ".sft.run.json", record)


def test_unfinished_run_of_the_first_version_resumes(lora_config):
    out = leave_unfinished(lora_config, checkpoints=(4,))
    write_v1_record(out, lora_config, "sales/2026-01-01/tune")
    assert decide(lora_config).action is Action.RESUME


def test_finished_run_of_the_first_version_answers_without_digests(lora_config):
    out = leave_finished(lora_config)
    write_v1_record(out, lora_config, "sales/2026-01-01/tune")
    (out / ".complete").write_text("")
    assert decide(lora_config).action is Action.REPORT_FINISHED
