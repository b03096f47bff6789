"""The verdict on an adapter, from its config, its headers and the base model's config. Each row of the table that
PEFT can save is in tests/trainer/export/test_every_row.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from airflow_provider_sft import cli
from airflow_provider_sft.contract.errors import ConfigError, ExportError
from airflow_provider_sft.contract.vllm import judge_adapter, judge_model
from airflow_provider_sft.contract.vllm_releases import find_releases

LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 1000}


@pytest.fixture
def write(tmp_path):
    """Write an adapter by its headers; the tensors' bytes are a hole."""

    def get(tensors, *, base=LLAMA, new_rows=None, size=None, **config):
        directory = tmp_path / "adapter"
        directory.mkdir(exist_ok=True)
        settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]} | config
        if base is not None:
            (tmp_path / "base").mkdir(exist_ok=True)
            (tmp_path / "base" / "config.json").write_text(json.dumps(base))
            settings["base_model_name_or_path"] = str(tmp_path / "base")
        (directory / "adapter_config.json").write_text(json.dumps(settings))
        write_header(
            directory / "adapter_model.safetensors", {f"base_model.model.{k}": v for k, v in tensors.items()}
        )
        if new_rows:
            write_header(directory / "new_embeddings.safetensors", new_rows)
        if size:
            (directory / "added_tokens_info.json").write_text(json.dumps({"new_embedding_size": size}))
        return directory

    return get


def write_header(path, shapes):
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + offset)


def q_proj(rank=8):
    prefix = "model.layers.0.self_attn.q_proj"
    return {f"{prefix}.lora_A.weight": (rank, 64), f"{prefix}.lora_B.weight": (64, rank)}


def embeddings(width=1000, rank=8):
    return {
        "model.embed_tokens.lora_embedding_A": (rank, width),
        "model.embed_tokens.lora_embedding_B": (64, rank),
        "lm_head.lora_A.weight": (rank, 64),
        "lm_head.lora_B.weight": (width, rank),
    }


def outcomes(verdicts):
    return {verdict["releases"]: verdict["verdict"] for verdict in verdicts}


EVERYWHERE = {"0.8.5-0.33": "loads_right"}


def test_neighbouring_releases_that_agree_are_one_entry(write):
    assert outcomes(judge_adapter(write(q_proj()))) == EVERYWHERE


@pytest.mark.parametrize(("rank", "flag"), [(16, None), (17, 32), (64, 64), (257, 320), (512, 512)])
def test_a_rank_over_the_default_gets_its_flag(write, rank, flag):
    (verdict,) = judge_adapter(write(q_proj(rank), r=rank))
    assert verdict["flags"] == ["--enable-lora", *([f"--max-lora-rank={flag}"] if flag else [])]


def test_a_rank_over_512_is_rejected(write):
    (verdict,) = judge_adapter(write(q_proj(513), r=513))
    assert (verdict["verdict"], verdict["reason"]) == ("rejected", "Rank 513 is more than vLLM takes (512).")


def test_a_rank_that_only_an_unused_pattern_names_counts_since_0_32(write):
    early, late = judge_adapter(write(q_proj(8), rank_pattern={"no_such": 100}))
    assert (early["releases"], early["flags"]) == ("0.8.5-0.31", ["--enable-lora"])
    assert (late["releases"], late["flags"]) == ("0.32-0.33", ["--enable-lora", "--max-lora-rank=128"])
    early, late = judge_adapter(write(q_proj(8), rank_pattern={"no_such": 513}))
    assert (early["releases"], early["verdict"]) == ("0.8.5-0.31", "loads_right")
    assert (late["verdict"], late["reason"]) == (
        "rejected",
        "rank_pattern names rank 513, more than vLLM takes (512), though no module has it.",
    )


def test_a_pickled_adapter_is_not_read_and_the_sentence_says_how_to_save_it(write, capsys):
    directory = write(q_proj())
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    assert cli.main(["vllm-check", str(directory)]) == 69
    assert "adapter_model.bin is a pickle" in capsys.readouterr().err


def test_a_classifier_head_gets_the_flags_of_a_served_classifier_where_releases_take_it(write):
    tensors = q_proj() | {"score.weight": (2, 64)}
    *_, last = judge_adapter(write(tensors, modules_to_save=["score"]))
    assert last["releases"] == "0.31-0.33"
    assert last["flags"] == ["--enable-lora", "--runner=pooling", "--convert=classify"]


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", EVERYWHERE),
        ("GraniteForCausalLM", EVERYWHERE),
        ("Qwen2ForCausalLM", {"0.8.5-0.33": "rejected"}),
        ("Gemma2ForCausalLM", {"0.8.5-0.33": "rejected"}),
        ("MistralForCausalLM", {"0.8.5-0.14.1": "loads_right", "0.15.1-0.33": "rejected"}),
        ("Qwen3ForCausalLM", {"0.8.5-0.15.1": "rejected", "0.16-0.33": "loads_right"}),
    ],
)
def test_lora_on_embeddings_depends_on_the_architecture(write, architecture, expected):
    base = LLAMA | {"architectures": [architecture]}
    assert outcomes(judge_adapter(write(embeddings(), base=base))) == expected


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("GPT2LMHeadModel", "vLLM takes no LoRA for GPT2LMHeadModel."),
        ("NobodysModel", "vLLM does not list NobodysModel."),
    ],
)
def test_an_architecture_without_lora_is_rejected(write, architecture, reason):
    (verdict,) = judge_adapter(write(q_proj(), base=LLAMA | {"architectures": [architecture]}))
    assert (verdict["verdict"], verdict["reason"]) == ("rejected", reason)


def test_without_the_bases_config_the_reason_says_what_was_assumed(write):
    (verdict,) = judge_adapter(write(q_proj(), base=None))
    assert "its config.json was not found" in verdict["reason"]


def test_a_width_that_is_not_the_bases_is_rejected_since_0_12(write):
    verdicts = judge_adapter(write(embeddings(width=1003)))
    assert outcomes(verdicts) == {"0.8.5-0.11.2": "loads_right", "0.12-0.33": "rejected"}
    assert "1003 tokens and the base model 1000" in verdicts[1]["reason"]


NEW_ROWS = {"input_embeddings": (300, 64), "output_embeddings": (300, 64)}


def test_many_new_rows_need_the_extra_vocabulary_flag(write):
    directory = write(embeddings(width=1300), new_rows=NEW_ROWS)
    first = judge_adapter(directory)[0]
    assert first["verdict"] == "loads_right"
    assert first["flags"] == ["--enable-lora", f"--tokenizer={directory}", "--lora-extra-vocab-size=512"]


def test_more_new_rows_than_vllm_ever_took_are_rejected(write):
    rows = dict.fromkeys(NEW_ROWS, (513, 64))
    first = judge_adapter(write(embeddings(width=1513), new_rows=rows))[0]
    assert first["verdict"] == "rejected"
    assert "more than --lora-extra-vocab-size takes (512)" in first["reason"]


def test_new_rows_without_lora_on_the_embeddings_are_lost_everywhere(write):
    assert set(outcomes(judge_adapter(write(q_proj(), new_rows=NEW_ROWS))).values()) == {"loads_wrong"}


def test_new_rows_load_right_on_a_base_that_has_them(write):
    base = LLAMA | {"vocab_size": 1300}
    assert outcomes(judge_adapter(write(q_proj(), base=base, new_rows=NEW_ROWS, size=1300))) == EVERYWHERE


def test_new_rows_without_the_output_key_are_rejected_where_lm_head_carries_lora(write):
    first = judge_adapter(write(embeddings(width=1300), new_rows={"input_embeddings": (300, 64)}))[0]
    assert (first["verdict"], "lacks output_embeddings" in first["reason"]) == ("rejected", True)


def test_patterns_that_change_no_scaling_load_right(write):
    directory = write(q_proj(4), rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 8})
    assert outcomes(judge_adapter(directory)) == EVERYWHERE


def test_lora_bias_is_dropped_by_some_releases_and_refused_by_others(write):
    verdicts = judge_adapter(write(q_proj(), lora_bias=True))
    assert outcomes(verdicts) == {
        "0.8.5-0.11.0": "loads_wrong",
        "0.11.1-0.30": "rejected",
        "0.31": "loads_wrong",
        "0.32-0.33": "rejected",
    }


def test_a_vocabulary_beyond_the_kernels_limit_is_rejected(write):
    verdicts = judge_adapter(write(q_proj(), base=LLAMA | {"vocab_size": 257_500}))
    assert outcomes(verdicts) == {"0.8.5-0.16": "rejected", "0.17.0-0.33": "loads_right"}


def test_a_prompt_tuned_adapter_is_rejected(write):
    (verdict,) = judge_adapter(write(q_proj(), peft_type="PROMPT_TUNING"))
    assert verdict["verdict"] == "rejected"


def test_a_whole_model_loads_where_its_architecture_is_listed():
    assert outcomes(judge_model(LLAMA)) == EVERYWHERE
    assert outcomes(judge_model({"architectures": ["NobodysModel"]})) == {"0.8.5-0.33": "rejected"}


@pytest.mark.parametrize(
    ("version", "meant"),
    [
        ("0.9.2", ["0.9.2"]),
        ("0.11", ["0.11.0", "0.11.1", "0.11.2"]),
        ("0.12.0", ["0.12.0"]),
        ("v0.33.1", ["0.33.0"]),
        ("0.34", []),
        ("1.0", []),
    ],
)
def test_a_version_means_the_measured_releases_of_it(version, meant):
    assert find_releases(version) == meant


@pytest.mark.parametrize("version", ["0.8.4", "0.5"])
def test_a_release_before_the_first_measured_is_refused(version):
    with pytest.raises(ConfigError, match=r"older than 0\.8\.5"):
        find_releases(version)


def test_vllm_check_prints_every_range_and_ends_69_when_one_is_wrong(write, capsys):
    directory = write(q_proj(4), rank_pattern={"q_proj": 4})
    assert cli.main(["vllm-check", str(directory)]) == 69
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(".")[0] for line in lines] == ["vLLM 0", "vLLM 0"]
    assert lines[0].startswith("vLLM 0.8.5-0.31: loads wrong. rank_pattern and alpha_pattern are ignored")


def test_vllm_check_of_one_release_answers_for_it_alone(write, capsys):
    directory = write(q_proj(4), rank_pattern={"q_proj": 4})
    assert cli.main(["vllm-check", str(directory), "--vllm", "0.32.1"]) == 0
    assert capsys.readouterr().out.startswith("vLLM 0.32: loads right.")
    assert cli.main(["vllm-check", str(directory), "--vllm", "0.30"]) == 69


def test_vllm_check_of_a_release_that_was_not_measured_ends_69_unless_that_is_allowed(write, capsys):
    command = ["vllm-check", str(write(q_proj())), "--vllm", "0.40"]
    assert cli.main(command) == 69
    assert capsys.readouterr().out.startswith("vLLM 0.40: not measured.")
    assert cli.main([*command, "--allow-unmeasured"]) == 0


def test_vllm_check_of_an_unknown_base_ends_69_and_says_how_to_name_it(write, capsys):
    assert cli.main(["vllm-check", str(write(q_proj(), base=None))]) == 69
    assert "Give its directory with --base" in capsys.readouterr().err


def test_vllm_check_finds_the_base_in_the_hubs_cache(write, tmp_path, monkeypatch):
    directory = write(q_proj(), base=None, base_model_name_or_path="some/model")
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA | {"architectures": ["GPT2LMHeadModel"]}))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (verdict,) = judge_adapter(directory)
    assert (verdict["verdict"], verdict["reason"]) == ("rejected", "vLLM takes no LoRA for GPT2LMHeadModel.")


def test_a_users_table_adds_a_release(write, tmp_path, monkeypatch, capsys):
    table = {"releases": ["0.34.0"], "rules": {}, "architectures": {"LlamaForCausalLM": "n"}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    monkeypatch.setenv("SFT_VLLM_TABLE", str(tmp_path / "table.json"))
    assert cli.main(["vllm-check", str(write(q_proj())), "--vllm", "0.34"]) == 69
    assert "vLLM 0.34: rejected. vLLM takes no LoRA for LlamaForCausalLM." in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "code"), [(["--vllm", "x"], 64), (["--vllm", "0.1"], 64)])
def test_vllm_check_of_no_release_is_a_wrong_argument(write, arguments, code, capsys):
    assert cli.main(["vllm-check", str(write(q_proj())), *arguments]) == code


def test_vllm_check_of_an_empty_directory_names_the_file(tmp_path, capsys):
    assert cli.main(["vllm-check", str(tmp_path)]) == 69
    assert "adapter_config.json does not exist" in capsys.readouterr().err


def test_a_config_that_is_no_object_is_refused(write):
    directory = write(q_proj())
    (directory / "adapter_config.json").write_text("[]")
    with pytest.raises(ExportError, match="holds no JSON object"):
        judge_adapter(directory)


def test_the_verdict_needs_the_standard_library_alone():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'numpy', 'safetensors', 'jsonschema', 'airflow']);"
        "import airflow_provider_sft.contract.vllm"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
