"""A small real model and small real data, made in a second: what most trainer tests run on."""

from __future__ import annotations

import json
import random
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_COMPLAINTS = (
    "my order never arrived",
    "the app crashes at login",
    "nobody answers the phone",
    "the bill is wrong",
)
_PRAISE = (
    "thanks for the quick help",
    "love the new update",
    "great service today",
    "the delivery was early",
)
_NAMES = ("@shop", "@airline", "@bank", "@telco", "@hotel", "@café")


def write_tweets(path: Path, *, rows: int = 64, seed: int = 0) -> Path:
    """Tweets with a label in one text, as the peer's twitter_complaints: `### Text: ...\\n\\n### Label: ...`."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            texts, label = rng.choice([(_COMPLAINTS, "complaint"), (_PRAISE, "no complaint")])
            text = f"{rng.choice(_NAMES)} {rng.choice(texts)} ({number})"
            row = {"input": text, "label": label, "output": f"### Text: {text}\n\n### Label: {label}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def write_chats(path: Path, *, rows: int = 32) -> Path:
    """One question and one answer a row, as `messages`."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            messages = [
                {"role": "user", "content": f"what is {number % 8} plus one?"},
                {"role": "assistant", "content": f"it is {number % 8 + 1}."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def lora_config(model_dir: Path, data: Path, output_dir: Path) -> dict:
    """Eight LoRA steps on tweets with a response template: about the smallest run that learns."""
    return {
        "model_name_or_path": str(model_dir),
        "training_data_path": str(data),
        "output_dir": str(output_dir),
        "dataset_text_field": "output",
        "response_template": "\n### Label:",
        "peft_method": "lora",
        "torch_dtype": "float32",
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 4,
        "generate_samples": 0,
    }


def save_model(directory: Path, *, seed: int = 0, tie: bool = False) -> Path:
    """A two-layer Llama of 0.2 M parameters in float32 with a byte-level BPE tokenizer and a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _pretrain(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _pretrain(model, tokenizer, *, steps: int = 60) -> None:
    """On tweets labelled by a coin: it can speak, and has the task still to learn. An adapter needs that much."""
    import torch

    rng = random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        texts = [
            f"### Text: {rng.choice(_NAMES)} {text} ({rng.randrange(64)})\n\n### Label: "
            f"{rng.choice(['complaint', 'no complaint'])}{tokenizer.eos_token}"
            for text in _COMPLAINTS + _PRAISE
        ]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        model(**{k: v for k, v in batch.items() if k != "token_type_ids"}, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [
        *_COMPLAINTS,
        *_PRAISE,
        *_NAMES,
        "### Text: ",
        "### Label: complaint",
        "no complaint",
        "what is plus",
    ]
    tokenizer.train_from_iterator(corpus * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
