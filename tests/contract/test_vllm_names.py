"""The verdict compares an adapter's names and shapes with the base model's own."""

from __future__ import annotations

import json
import struct

import pytest

from airflow_provider_sft.contract.adapter_files import find_nonfinite, read_tensor_file
from airflow_provider_sft.contract.base_model import BaseModel
from airflow_provider_sft.contract.vllm import judge_adapter
from tests.contract.test_vllm import outcomes, write_header

LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 100}
QWEN = {"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": {"vocab_size": 100}}
LAYER = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."


@pytest.fixture
def verdicts_of(tmp_path):
    """Verdicts on an adapter with LoRA of these tensors, on a base of two layers."""

    def judge(tensors, *, base=LLAMA, root="model", **config):
        directory = tmp_path / "base"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(base))
        names = [f"{root}.layers.{n}.self_attn.{m}_proj.weight" for n in range(2) for m in "qkvo"]
        write_header(
            directory / "model.safetensors",
            dict.fromkeys(names, (64, 64)) | {f"{root}.embed_tokens.weight": (100, 64)},
        )
        settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": str(directory)}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | config))
        write_header(tmp_path / "adapter_model.safetensors", tensors)
        return judge_adapter(tmp_path)

    return judge


def lora(module=LAYER, *, prefix=PREFIX, wide=64, rank=8, parts="AB", suffix=".weight"):
    shapes = {"A": (rank, wide), "B": (64, rank)}
    return {f"{prefix}{module}.lora_{part}{suffix}": shapes[part] for part in parts}


MISFITS = [
    (lora("model.layers.0.self_attn.query"), "rejected", "has no model.layers.0.self_attn.query"),
    (lora("model.layers.7.self_attn.q_proj"), "loads_wrong", "has no model.layers.7"),
    (lora(wide=32), "rejected", r"is (64, 64) in the base"),
    (lora(parts="A"), "rejected", "has no lora_B"),
    (lora(parts="B"), "rejected", "has no lora_A"),
    (lora(rank=4), "loads_wrong", "has rank 4 in its tensors, and adapter_config.json says 8"),
    (lora("layers.0.self_attn.q_proj"), "loads_wrong", "calls it model.layers.0"),
    (lora(prefix="module.base_model.model."), "loads_wrong", "does not begin with"),
    (lora("_orig_mod.model.layers.0.self_attn.q_proj"), "loads_wrong", "has no _orig_mod"),
    (lora(suffix=".default.weight"), "rejected", "the name of an adapter"),
]


@pytest.mark.parametrize(("tensors", "outcome", "reason"), MISFITS, ids=[case[2] for case in MISFITS])
def test_names_and_shapes_that_are_not_the_bases_are_never_right(verdicts_of, tensors, outcome, reason):
    verdicts = verdicts_of(tensors)
    assert {verdict["verdict"] for verdict in verdicts} == {outcome}
    assert all(reason in verdict["reason"] for verdict in verdicts)


def test_names_and_shapes_of_the_base_are_right(verdicts_of):
    assert outcomes(verdicts_of(lora())) == {"0.8.5-0.33": "loads_right"}


@pytest.mark.parametrize(("name", "right_before_0_33"), [("model", False), ("model.language_model", True)])
def test_text_only_names_on_a_multimodal_class_are_applied_since_0_33(verdicts_of, name, right_before_0_33):
    verdicts = verdicts_of(lora(f"{name}.layers.0.self_attn.q_proj"), base=QWEN, root="model.language_model")
    assert verdicts[-1]["verdict"] == "loads_right"
    assert any("calls it model.language_model" in v["reason"] for v in verdicts) is not right_before_0_33


@pytest.mark.parametrize(
    ("dtype", "content", "found"),
    [
        ("F32", struct.pack("<3f", 1, float("nan"), 2), True),
        ("F32", struct.pack("<3f", 1, -3e38, 2), False),
        ("F16", struct.pack("<3e", 1, float("inf"), 2), True),
        ("F16", struct.pack("<3e", 1, -65504, 2), False),
        ("BF16", b"\x80\x3f\xc0\x7f", True),
        ("BF16", b"\x7f\x7f\x7f\xff", False),
    ],
)
def test_nan_and_infinity_are_found_and_large_numbers_are_not(tmp_path, dtype, content, found):
    size = len(content) // {"F32": 4, "F16": 2, "BF16": 2}[dtype]
    header = json.dumps({"x": {"dtype": dtype, "shape": [size], "data_offsets": [0, len(content)]}}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + content)
    assert (find_nonfinite(read_tensor_file(tmp_path / "x").tensors) == "x") is found


def test_a_module_is_found_in_the_language_model_and_never_in_the_vision_tower(tmp_path):
    names = [
        "language_model.model.layers.0.self_attn.q_proj",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
    ]
    write_header(tmp_path / "model.safetensors", {f"{name}.weight": (8, 8) for name in names})
    found = BaseModel(tmp_path).find("model.language_model.layers.0.self_attn.q_proj")
    assert found == "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(("byte", "outcome"), [(b"\0", "loads_right"), (b"\x3f", "loads_wrong")])
def test_lora_on_a_vision_tower_is_ignored_by_vllm_and_so_wrong_unless_it_is_zero(tmp_path, byte, outcome):
    tower = "vision_tower.encoder.layers.0.self_attn.q_proj"
    (tmp_path / "base").mkdir()
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"vocab_size": 100}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    names = [f"{tower}.weight", "language_model.model.layers.0.self_attn.q_proj.weight"]
    write_header(tmp_path / "base" / "model.safetensors", dict.fromkeys(names, (64, 64)))
    settings = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "base_model_name_or_path": str(tmp_path / "base"),
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    weights = tmp_path / "adapter_model.safetensors"
    write_header(weights, lora("language_model.model.layers.0.self_attn.q_proj") | lora(tower))
    weights.write_bytes(weights.read_bytes()[:-1] + byte)  # the last of the tower's B
    assert set(outcomes(judge_adapter(tmp_path)).values()) == {outcome}
