"""What only a GPU shows: its attention kernel, quantised bases, its memory, and a resume on it."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from airflow_provider_sft.contract.estimate import estimate_run
from airflow_provider_sft.contract.settings import resolve_config
from tests import tiny
from tests.gpu.memory import MemoryWatch
from tests.trainer.test_attention import LENGTHS, PADDING_FREE_MODEL_TYPES, loss_and_gradients, tiny_model
from tests.trainer.test_refusals import wait_for
from trainer.attention import _VARLEN_OPTIONS, document_attention
from trainer.data.batching import PaddedCollator, PaddingFreeCollator

pytestmark = pytest.mark.gpu
BFLOAT16_EPS = 2**-8


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


def stop_midway(run, out):
    progress = out / "progress.json"
    wait_for(lambda: progress.exists() and json.loads(progress.read_text())["step"] >= 7)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 206, run.stderr[-4000:]


def to_gpu(batch):
    return {key: value.cuda() if torch.is_tensor(value) else value for key, value in batch.items()}


@pytest.fixture
def small_config(small_model_dir, tweets, tmp_path):
    return {
        **tiny.lora_config(small_model_dir, tweets, tmp_path / "out"),
        "torch_dtype": "bfloat16",
        "learning_rate": 1e-3,
        "max_steps": 20,
        "save_steps": 5,
    }


@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (8, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_kernel_for_documents_equals_each_document_alone(heads, head_dim):
    assert "window_size" in _VARLEN_OPTIONS
    query_heads, kv_heads = heads
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [300, 1, 77, 512, 2]

    def draw(number):
        shape = (1, number, sum(lengths), head_dim)
        return torch.randn(
            shape, generator=generator, device="cuda", dtype=torch.bfloat16, requires_grad=True
        )

    states = [draw(query_heads), draw(kv_heads), draw(kv_heads)]
    exact = [state.detach().double().requires_grad_() for state in states]
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device="cuda")
    weight = torch.randn(1, sum(lengths), query_heads, head_dim, generator=generator, device="cuda")
    results = []
    for triple in (states, exact):  # float64 does not fit the kernel: each document goes through sdpa
        output, _ = document_attention(None, *triple, boundaries)
        gradients = torch.autograd.grad((output * weight).sum(), triple)
        results.append([output, *gradients])
    for ours, reference in zip(*results, strict=True):
        error = (ours.double() - reference).norm() / reference.norm()
        assert error < 2 * BFLOAT16_EPS


@pytest.mark.parametrize("model_type", sorted(PADDING_FREE_MODEL_TYPES))
def test_batch_without_padding_trains_as_a_padded_one_in_bfloat16(model_type):
    """Of both, the distance from float32 is alike: neither adds an error of its own."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]
    rows = [{"input_ids": row, "labels": row} for row in ids]
    free, padded = to_gpu(PaddingFreeCollator()(rows)), to_gpu(PaddedCollator()(rows))
    exact = flatten(loss_and_gradients(tiny_model(model_type).cuda().eval(), padded)[1])
    model = tiny_model(model_type).to("cuda", torch.bfloat16).eval()
    errors = [
        (flatten(loss_and_gradients(model, batch)[1]) - exact).norm() / exact.norm()
        for batch in (free, padded)
    ]
    assert errors[0] < 2 * errors[1] + BFLOAT16_EPS, errors


def flatten(gradients):
    return torch.cat([gradient.float().flatten() for _, gradient in sorted(gradients.items())])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": True, "max_length": 256},
        {"padding_free": False},
        {"gradient_checkpointing": True},
        {"torch_compile": True},
        {"use_liger_kernel": True},
        {"peft_method": "none", "learning_rate": 1e-4},
        {"peft_method": "none", "learning_rate": 1e-4, "optim": "adamw_bnb_8bit"},
        {"bnb_qlora": ["nf4", True]},
        {"bnb_qlora": ["fp4", False], "gradient_checkpointing": True},
        {"peft_method": "pt"},
        {"use_dora": True},
        {"torch_dtype": "float32"},
        {"torch_dtype": "float16", "fp16": True},
        {"accelerate_launch_args": {"mixed_precision": "bf16"}, "torch_dtype": "float32"},
        {"dataloader_num_workers": 2},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()) or "lora",
)
@pytest.mark.timeout(600)  # compiling takes minutes
def test_run_learns_on_the_gpu(small_config, run_trainer, changes):
    run = run_trainer({**small_config, **changes, "generate_samples": 1})
    result = run.result
    assert result["status"] == "succeeded"
    assert result["train_loss_last"] < result["train_loss_first"]
    assert result["gpu_s"] > 0


def test_resume_on_the_gpu_ends_with_the_weights_of_an_undisturbed_run(
    small_config, start_trainer, run_trainer, tmp_path
):
    config = {**small_config, "lora_dropout": 0.1, "full_determinism": True}
    run_trainer(config)
    undisturbed = weights(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    stop_midway(start_trainer(config), tmp_path / "out")
    assert run_trainer(config).result["resumed_from_step"] >= 7
    resumed = weights(tmp_path / "out")
    assert [name for name in undisturbed if not torch.equal(undisturbed[name], resumed[name])] == []


def test_qlora_resumes_and_is_exported(small_config, start_trainer, run_trainer, tmp_path):
    config = {**small_config, "bnb_qlora": ["nf4", True], "lora_post_process_for_vllm": True}
    stop_midway(start_trainer(config), tmp_path / "out")
    assert run_trainer(config).result["resumed_from_step"] >= 7
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("room_gb", [0.8, 1.6], ids=["to-load", "to-train"])
def test_gpu_out_of_memory_ends_202_and_says_what_helps(small_config, run_trainer, room_gb):
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(int(free - room_gb * 1e9), dtype=torch.uint8, device="cuda")
    run = run_trainer({**small_config, "peft_method": "none"}, code=202)
    del held
    torch.cuda.empty_cache()
    assert "accelerator" in run.result["reason"]
    assert "per_device_train_batch_size" in run.result["advice"]


@pytest.mark.parametrize(
    "technique", [{}, {"peft_method": "none", "learning_rate": 1e-4}], ids=["lora", "full"]
)
def test_estimate_is_no_more_than_the_run_takes(small_config, run_trainer, technique):
    config = {**small_config, **technique, "max_steps": 5}
    estimate = estimate_run(resolve_config(config).values, gpus=1)
    watch = MemoryWatch()
    run_trainer(config)
    assert estimate.device.size_bytes < watch.stop()
