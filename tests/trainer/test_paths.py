"""Every path of a config, judged by the place on the disk and not by its spelling, before anything is loaded."""

from __future__ import annotations

import glob
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError
from airflow_provider_sft.contract.schema import config_keys, launch_flags
from airflow_provider_sft.contract.settings import resolve_config
from tests.trainer.here import run_here
from trainer.data.files import locate_data
from trainer.paths import check_places, prepare_directory, prove_places

# A value of the key's own kind that names a place: most take a path as it is.
SPELLINGS = {"mlflow_tracking_uri": "file://{}"}
PATH_KEYS = [name for name, prop in config_keys().items() if "x-path" in prop]
PATH_FLAGS = [name for name, prop in launch_flags().items() if "x-path" in prop]


@pytest.fixture
def places(tmp_path):
    """The values of a config whose model, data and output lie in directories of their own."""
    for name in ("model", "data", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text('{"text": "a"}\n')
    base = {
        "model_name_or_path": str(tmp_path / "model"),
        "training_data_path": str(tmp_path / "data" / "rows.jsonl"),
        "output_dir": str(tmp_path / "out"),
    }

    def values(**keys):
        given = {**base, **keys}
        if "data_config_path" in keys:
            del given["training_data_path"]
        return resolve_config(given).values

    return values


@pytest.mark.parametrize("key", PATH_KEYS)
def test_every_path_key_is_held_to_the_allowed_roots(key, places, tmp_path):
    named = SPELLINGS.get(key, "{}").format(tmp_path / "elsewhere" / "x.yaml")
    roots = ":".join(str(tmp_path / name) for name in ("model", "data", "out"))
    with pytest.raises(AccessDeniedError, match=f"^{key} .*elsewhere.* outside SFT_ALLOWED_ROOTS"):
        check_places(places(**{key: named}), {"SFT_ALLOWED_ROOTS": roots})


@pytest.mark.parametrize("flag", PATH_FLAGS)
def test_every_path_of_the_launcher_is_held_to_the_allowed_roots(flag, places, tmp_path):
    values = places(accelerate_launch_args={flag: str(tmp_path / "elsewhere" / "x")})
    roots = ":".join(str(tmp_path / name) for name in ("model", "data", "out"))
    with pytest.raises(
        AccessDeniedError, match=f"^accelerate_launch_args.{flag} .* Add .*elsewhere to that list"
    ):
        check_places(values, {"SFT_ALLOWED_ROOTS": roots})


def test_subfolder_and_file_of_a_model_that_link_out_of_the_roots_are_denied(places, tmp_path):
    (tmp_path / "model" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AccessDeniedError, match="elsewhere, outside"):
        check_places(
            places(model_init_kwargs={"subfolder": "sub"}),
            {"SFT_ALLOWED_ROOTS": f"{tmp_path}/model:{tmp_path}/data"},
        )


@pytest.mark.parametrize("key", ["output_dir", "save_model_dir", "prepared_data_dir", "logging_dir"])
@pytest.mark.parametrize("spelling", ["link", "data/../model", "model/tuned", "relative"])
def test_writing_into_the_base_model_is_refused_by_its_place(key, spelling, places, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    text = "." if spelling == "relative" else str(tmp_path / spelling)
    with pytest.raises(ConfigError, match="lies in model_name_or_path|the directory of the base model"):
        check_places(places(**{key: text}), {})


def test_output_dir_that_is_a_link_to_the_base_model_ends_64_and_leaves_the_model(lora_config, tmp_path):
    model = Path(lora_config["model_name_or_path"])
    before = {path.name: path.stat().st_mtime_ns for path in model.iterdir()}
    (tmp_path / "out").symlink_to(model)
    result = run_here({**lora_config, "peft_method": "none"})
    assert (result["exit_code"], "which would be written over" in result["reason"]) == (64, True)
    assert before == {path.name: path.stat().st_mtime_ns for path in model.iterdir()}


def test_model_that_the_run_would_remove_is_refused(places, tmp_path):
    (tmp_path / "out" / "checkpoint-4").mkdir(parents=True)
    values = places(model_name_or_path=str(tmp_path / "out" / "checkpoint-4"))
    with pytest.raises(ConfigError, match="under a name that the run writes. Move it"):
        check_places(values, {})


def test_save_model_dir_of_another_run_is_refused(places, tmp_path):
    (tmp_path / "elsewhere" / ".sft.run.json").write_text("{}")
    with pytest.raises(ConfigError, match="is the output_dir of another run, whose files would be replaced"):
        check_places(places(save_model_dir=str(tmp_path / "elsewhere")), {})


@pytest.mark.parametrize("name", ["checkpoint-3", "merged", ".staging/x"])
def test_save_model_dir_under_a_name_that_the_run_needs_is_refused(name, places, tmp_path):
    with pytest.raises(ConfigError, match="a run's output_dir, under a name that the run writes"):
        check_places(places(save_model_dir=str(tmp_path / "out" / name)), {})


@pytest.mark.parametrize("name", ["result.json", "training_logs.jsonl", "curve.jsonl"])
def test_data_file_that_the_run_would_write_over_ends_64(name, lora_config, tmp_path):
    (tmp_path / "out").mkdir()
    data = tmp_path / "out" / name
    data.write_text('{"output": "a\\n### Label: b"}\n')
    result = run_here(
        {**lora_config, "training_data_path": str(data), "training_logs_filename": "curve.jsonl"}
    )
    assert (result["exit_code"], f"{name}' lies in output_dir" in result["reason"]) == (64, True)
    assert data.read_text().startswith('{"output"')


@pytest.mark.parametrize("out", ["out", "."])
@pytest.mark.parametrize("named", [".", "*.jsonl", "**/*.jsonl"])
def test_output_dir_in_the_data_directory_adds_nothing_to_the_data(out, named, places, tmp_path):
    data = tmp_path / "data"
    values = places(training_data_path=str(data / named), output_dir=str(data / out))
    before = [path.name for path in locate_data(values, {}).sources[0].files]
    (data / out).mkdir(exist_ok=True)
    for left in ("attempts.jsonl", "training_logs.jsonl", "result.json", ".sft.run.json"):
        (data / out / left).write_text("{}\n")
    (data / "older").mkdir()
    for left in (".sft.run.json", "training_logs.jsonl", "config.json"):
        (data / "older" / left).write_text("{}\n")
    assert [path.name for path in locate_data(values, {}).sources[0].files] == before == ["rows.jsonl"]


def test_rows_that_another_run_has_prepared_are_data(places, tmp_path):
    other = tmp_path / "data" / "prepared"
    (other / "train_dataset").mkdir(parents=True)
    (other / "train_dataset" / "shard.jsonl").write_text('{"input_ids": [1], "labels": [1]}\n')
    (other / ".sft.run.json").write_text("{}")
    (other / "attempts.jsonl").write_text("{}\n")
    found = locate_data(places(training_data_path=str(other)), {}).sources[0].files
    assert [path.name for path in found] == ["shard.jsonl"]


def test_pattern_reads_each_file_once_although_links_lead_in_circles(places, tmp_path):
    data = tmp_path / "data"
    (data / "a" / "b").mkdir(parents=True)
    (data / "a" / "b" / "more.jsonl").write_text('{"text": "b"}\n')
    for place in (data, data / "a", data / "a" / "b"):
        (place / "loop").symlink_to(data)
        (place / "up").symlink_to("..")
    found = locate_data(places(training_data_path=str(data / "**" / "*.jsonl")), {}).sources[0].files
    assert sorted(path.name for path in found) == ["more.jsonl", "rows.jsonl"]


@pytest.mark.parametrize(
    "pattern", ["data/**/*.jsonl", "data/**", "**/rows.jsonl", "d?ta/*.jsonl", "data/a/**/*"]
)
def test_pattern_finds_what_glob_finds(pattern, places, tmp_path, monkeypatch):
    (tmp_path / "data" / "a" / ".hidden").mkdir(parents=True)
    for name in ("a/x.jsonl", "a/.hidden/y.jsonl", ".z.jsonl"):
        (tmp_path / "data" / name).write_text('{"text": "b"}\n')
    monkeypatch.chdir(tmp_path)
    matches = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207  # the function that we compare with
    expected = {path.resolve() for path in matches if path.is_file()}
    found = locate_data(places(training_data_path=pattern), {}).sources[0].files
    assert {path.resolve() for path in found} == expected


@pytest.mark.parametrize(
    "key", ["save_model_dir", "prepared_data_dir", "logging_dir", "run_uri_export_path", "aim_repo"]
)
def test_every_place_that_is_written_is_proved_before_the_model_loads(key, places, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"^{key} .* lies below a file"):
        prove_places(places(**{key: str(tmp_path / "file" / "x")}))


def test_save_model_dir_that_cannot_be_written_ends_77_before_the_model_loads(lora_config, tmp_path):
    result = run_here({**lora_config, "save_model_dir": "/proc/model"})
    assert result["exit_code"] == 77
    assert result["reason"].startswith("save_model_dir '/proc/model' cannot be written by user")
    assert not (tmp_path / "out" / "attempts.jsonl").exists()


def test_full_volume_of_save_model_dir_is_201_before_the_model_loads(tmp_path):
    code = (
        "import sys; from pathlib import Path; from trainer.paths import prepare_directory\n"
        "try: prepare_directory('save_model_dir', Path(sys.argv[1]))\n"
        "except Exception as error: print(int(error.exit_code), error.reason)"
    )
    volume = tmp_path / "volume"
    volume.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k tmpfs {volume} && (cat /dev/zero > {volume}/fill; "
        f'"$0" -c "$1" {volume}/model)'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"No small volume can be mounted here: {done.stderr.strip()}")
    assert done.stdout.startswith("201 save_model_dir")


def test_home_directory_is_meant_by_a_tilde(places, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places(output_dir="~/out")["output_dir"] == str(tmp_path / "out")


def test_directory_that_was_proved_is_left_empty(tmp_path):
    prepare_directory("output_dir", tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_log_under_the_name_of_an_input_is_refused(places, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rules.yaml").write_text("controllers: []\n")
    rules = str(tmp_path / "out" / "rules.yaml")
    values = places(trainer_controller_config_file=rules, training_logs_filename="rules.yaml")
    with pytest.raises(
        ConfigError, match="trainer_controller_config_file .* under a name that the run writes"
    ):
        check_places(values, {})


def test_file_that_an_object_names_does_not_become_a_directory(places, tmp_path):
    prove_places(places(fsdp_config={"activation_path": str(tmp_path / "elsewhere" / "x.json")}))
    assert list((tmp_path / "elsewhere").iterdir()) == []
