"""`python -m trainer.evaluate`: answers of a model, with an adapter or without, to rows it never saw."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from trainer.evaluate import main
from trainer.generate import Generator

PROMPT = "### Text: @bank the bill is wrong (3)\n\n### Label:"


@pytest.fixture(scope="session")
def adapter(lora):
    """A LoRA adapter that learned the labels, with a token of its own, exported for vLLM."""
    return lora.out


@pytest.fixture
def held_out(tmp_path):
    return tiny.write_tweets(tmp_path / "held-out.jsonl", rows=12, seed=9)


TEXT = ("--text-field", "output", "--response-template", "### Label:")


def test_evaluation_tells_a_tuned_model_from_an_untuned_one(
    adapter, tiny_model_dir, held_out, tmp_path, capfd
):
    rows = ["--data", str(held_out), *TEXT, "--max-new-tokens", "8", "--samples", "2"]
    output = tmp_path / "new" / "outcome.json"
    assert main(["--model", str(tiny_model_dir), *rows]) == 0
    untuned = json.loads(capfd.readouterr().out)
    assert (
        main(["--model", str(tiny_model_dir), "--adapter", str(adapter), *rows, "--output", str(output)]) == 0
    )
    tuned = json.loads(capfd.readouterr().out)
    assert untuned["exact_match"] < tuned["exact_match"] > 0.9
    assert json.loads(output.read_text()) == tuned
    assert (tuned["num_rows"], len(tuned["samples"]), tuned["adapter"]) == (12, 2, str(adapter))
    assert tuned["samples"][0]["prompt"].endswith("\n\n### Label:")
    assert tuned["samples"][0]["expected"].strip() in ("complaint", "no complaint")


def test_limit_takes_the_first_rows(adapter, tiny_model_dir, held_out, capfd):
    main(
        [
            "--model",
            str(tiny_model_dir),
            "--data",
            str(held_out),
            *TEXT,
            "--limit",
            "3",
            "--max-new-tokens",
            "1",
        ]
    )
    outcome = json.loads(capfd.readouterr().out)
    first = json.loads(held_out.read_text().splitlines()[0])
    assert outcome["num_rows"] == 3
    assert outcome["samples"][0]["prompt"] + outcome["samples"][0]["expected"] == first["output"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--data", "/d.jsonl"], 64, "the following arguments are required: --model"),
        (["--model", "m", "--data", "/d", "--modle", "x"], 64, "Unknown argument '--modle'. See python -m"),
        (["--model", "m", "--data", "/nowhere.jsonl"], 66, "/nowhere.jsonl"),
        (["--model", "m", "--data", "{rows}", "--adapter", "/nowhere"], 66, "holds no adapter_config.json"),
        (["--model", "m", "--data", "{empty}"], 65, "{empty}"),
        (["--model", "m", "--data", "{rows}", "--text-field", "output"], 64, "without --response-template"),
        (
            ["--model", "m", "--data", "{rows}", "--text-field", "x", *TEXT[2:]],
            65,
            "{rows} line 1: 'x' is missing.",
        ),
    ],
)
def test_wrong_argument_or_row_is_a_sentence_and_its_exit_code(
    held_out, tmp_path, capfd, caplog, arguments, code, sentence
):
    (tmp_path / "empty.jsonl").touch()
    places = {"rows": held_out, "empty": tmp_path / "empty.jsonl"}
    assert main([argument.format(**places) for argument in arguments]) == code, caplog.text
    said = capfd.readouterr()
    assert sentence.format(**places) in caplog.text
    assert said.out == ""
    assert "Traceback" not in caplog.text + said.err


def test_command_says_and_exits_as_main_does():
    command = [sys.executable, "-P", "-m", "trainer.evaluate", "--model", "m", "--data", "/nowhere.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (66, "")
    assert "/nowhere.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_argument_imports_no_torch():
    code = "import sys, trainer.evaluate as e; print(e.main(['--model', 'm']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["64", "False"]


def test_answers_come_in_the_order_of_the_prompts_whatever_the_batch(tiny_model_dir):
    generator = Generator.load(str(tiny_model_dir), max_new_tokens=6)
    chat = [{"role": "user", "content": "what is 1 plus one?"}]
    prompts = [PROMPT, chat, "### Text:", PROMPT * 2, "### Text: @shop great service today (1)\n\n### Label:"]
    alone = [generator.answer([prompt], batch_size=1)[0] for prompt in prompts]
    assert generator.answer(prompts, batch_size=2) == alone
    assert generator.answer(prompts, batch_size=16) == alone


def test_chat_is_asked_through_the_models_template(tiny_model_dir):
    generator = Generator.load(str(tiny_model_dir), max_new_tokens=6)
    rendered = "<|user|>\nwhat is 1 plus one?<|end|>\n<|assistant|>\n"
    chat = [{"role": "user", "content": "what is 1 plus one?"}]
    assert generator.answer([chat], batch_size=1) == generator.answer([rendered], batch_size=1)


def test_answer_ends_where_the_model_ends_it_or_is_cut(tiny_model_dir):
    [short] = Generator.load(str(tiny_model_dir), max_new_tokens=1).answer([PROMPT], batch_size=1)
    [whole] = Generator.load(str(tiny_model_dir), max_new_tokens=32).answer([PROMPT], batch_size=1)
    assert whole.startswith(short)
    assert whole.strip() in ("complaint", "no complaint")


def test_exported_adapter_answers_as_peft_makes_it(adapter, tiny_model_dir):
    """Its new rows lie in new_embeddings.safetensors, its tokenizer beside it."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = PeftModel.from_pretrained(base, adapter).eval()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    generator = Generator.load(str(tiny_model_dir), str(adapter), max_new_tokens=8)
    assert generator.answer([PROMPT], batch_size=1) == [expected]


def test_new_token_of_an_adapter_is_read_with_its_own_embedding(adapter, tiny_model_dir, tmp_path):
    """Another row for it in new_embeddings.safetensors gives other logits."""
    logits = []
    for factor in (1.0, 50.0):
        changed = tmp_path / str(factor)
        changed.mkdir()
        for path in adapter.iterdir():
            if path.is_file():
                (changed / path.name).write_bytes(path.read_bytes())
        rows = load_file(changed / "new_embeddings.safetensors")
        save_file(
            {name: weight * factor for name, weight in rows.items()}, changed / "new_embeddings.safetensors"
        )
        model = Generator.load(str(tiny_model_dir), str(changed), max_new_tokens=1)._model
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([[400, 7]])).logits)
    assert not torch.allclose(*logits)
