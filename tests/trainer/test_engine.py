"""The engine's exact, cheaper loss is trl's loss; what trl alone can do goes to trl."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from airflow_provider_sft.contract.errors import ConfigError, DivergedError
from trainer.callbacks import FiniteCallback
from trainer.checkpoints import CheckpointStore
from trainer.data.positions import LabelPositions
from trainer.engine import Engine

IGNORED = -100


def rows(count=6):
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 17, 9, 30, 12, 8][:count]
    result = []
    for length in lengths:
        ids = torch.randint(10, 300, (length,), generator=generator).tolist()
        result.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    return result


MIXTURES = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4},
    "llama4_text": {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 32},
}


def make_mixture(model_type):
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": 400, "num_key_value_heads": 2, "num_experts_per_tok": 2, **MIXTURES[model_type]}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape), dtype=torch.float32)


@pytest.fixture
def build(tiny_model_dir, tmp_path):
    def build(kind, *, model_type=None, peft_config=None, **options):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        if model_type:
            model = make_mixture(model_type)
        else:
            model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        torch.manual_seed(1)
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        args = SFTConfig(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            **options,
        )
        shared = {
            "model": model,
            "args": args,
            "train_dataset": Dataset.from_list(rows()),
            "processing_class": tokenizer,
            "data_collator": DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
        }
        if kind is SFTTrainer:
            return SFTTrainer(**shared)
        return Engine(store=CheckpointStore(tmp_path), facts={}, finite=FiniteCallback(1e3), **shared)

    return build


def loss_and_gradients(trainer, **kwargs):
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    model.zero_grad()
    batch = trainer.data_collator(rows())
    loss = trainer.compute_loss(model, batch, **kwargs)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "peft_config", [None, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")]
)
@pytest.mark.parametrize("num_items", [None, torch.tensor(100)])
def test_loss_and_gradients_equal_trls(build, peft_config, num_items):
    ours = loss_and_gradients(build(Engine, peft_config=peft_config), num_items_in_batch=num_items)
    theirs = loss_and_gradients(build(SFTTrainer, peft_config=peft_config), num_items_in_batch=num_items)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("num_items", [None, torch.tensor(100)])
def test_loss_of_a_mixture_of_experts_equals_trls_with_its_auxiliary_loss(build, model_type, num_items):
    options = {"model_type": model_type, "router_aux_loss_coef": 0.5}
    ours = loss_and_gradients(build(Engine, **options), num_items_in_batch=num_items)
    theirs = loss_and_gradients(build(SFTTrainer, **options), num_items_in_batch=num_items)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("model_type", ["granitemoe", "llama4_text"])
def test_mixture_that_trls_fused_head_fails_on_is_trained_and_evaluated(build, model_type):
    engine = build(Engine, model_type=model_type)
    loss, gradients = loss_and_gradients(engine)
    assert torch.isfinite(loss)
    assert [name for name in gradients if "router" in name]
    assert engine.evaluate(engine.train_dataset)["eval_loss"] == pytest.approx(float(loss), rel=0.1)


def test_evaluation_loss_equals_trls(build):
    engine, theirs = build(Engine), build(SFTTrainer)
    ours = engine.evaluate(engine.train_dataset)["eval_loss"]
    assert ours == pytest.approx(theirs.evaluate(theirs.train_dataset)["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("options", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
def test_losses_that_only_trl_knows_are_trls(build, options):
    ours, theirs = (
        loss_and_gradients(build(Engine, **options)),
        loss_and_gradients(build(SFTTrainer, **options)),
    )
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    plain = loss_and_gradients(build(Engine))
    assert not torch.isclose(ours[0], plain[0])


def test_prompt_tuning_takes_trls_loss(build):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    loss, gradients = loss_and_gradients(build(Engine, peft_config=config))
    assert torch.isfinite(loss)
    assert [name for name in gradients if "prompt_encoder" in name]


def test_adapter_on_lm_head_is_trained(build):
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    _, gradients = loss_and_gradients(build(Engine, peft_config=config))
    assert gradients["base_model.model.lm_head.lora_B.default.weight"].abs().sum() > 0


def test_adapter_on_lm_head_with_a_loss_that_would_ignore_it_is_refused(build):
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="target_modules adapts lm_head"):
        build(Engine, peft_config=config, loss_type="dft")


def test_batch_without_a_trained_label_gives_a_differentiable_zero(build):
    engine = build(Engine)
    batch = engine.data_collator([{"input_ids": [5, 6, 7], "labels": [IGNORED] * 3}])
    loss = engine.compute_loss(engine.model.train(), batch, num_items_in_batch=torch.tensor(4))
    loss.backward()
    assert loss == 0


def test_label_positions_are_those_that_predict_a_trained_token():
    collator = LabelPositions(DataCollatorForLanguageModeling(pad_token_id=0))
    batch = collator(
        [
            {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]},
            {"input_ids": [5, 6], "labels": [5, 6]},
        ]
    )
    assert batch["logits_to_keep"].tolist() == [0, 1, 2]
    assert batch["token_counts"].tolist() == [6, 3]


def test_non_finite_gradient_ends_the_run_before_the_optimizer_steps():
    with pytest.raises(DivergedError, match="The gradient is nan at step 3"):
        FiniteCallback(1e3).check_gradient(float("nan"), 3, 0.0)


def test_zero_gradient_in_two_steps_with_a_loss_ends_the_run():
    finite = FiniteCallback(1e3)
    finite.check_gradient(0.0, 3, 6.0)
    with pytest.raises(DivergedError, match="The gradient is 0 at step 4 while the loss is not"):
        finite.check_gradient(0.0, 4, 6.0)


def test_zero_gradient_with_no_loss_left_is_a_model_that_knows_it_all():
    finite = FiniteCallback(1e3)
    for step in range(1, 5):
        finite.check_gradient(0.0, step, 1e-6)


def test_one_step_without_a_gradient_is_no_divergence():
    finite = FiniteCallback(1e3)
    for step, gradient in enumerate([0.0, 1.0, 0.0, 1.0], start=1):
        finite.check_gradient(gradient, step, 6.0)


def test_non_finite_weight_ends_the_run_before_it_is_saved(build):
    engine = build(Engine)
    next(engine.model.parameters()).data[0, 0] = float("inf")
    with pytest.raises(DivergedError, match=r"A weight \(model.embed_tokens.weight\) is not finite"):
        engine.check_weights()


@pytest.mark.parametrize(
    "peft_config", [None, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")]
)
def test_floating_point_operations_are_those_that_transformers_counts(build, peft_config):
    batch = {"input_ids": torch.ones(2, 7, dtype=torch.long)}
    engine = build(Engine, peft_config=peft_config)
    assert engine.floating_point_ops(batch) == engine.floating_point_ops(batch) > 0
    assert engine.floating_point_ops(batch) == SFTTrainer.floating_point_ops(engine, batch)
