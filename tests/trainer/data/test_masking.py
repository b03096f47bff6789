"""For each format, tokenizer and script: the labels are exactly the text that should be trained."""

from __future__ import annotations

import pytest
from tokenizers import processors

from tests.trainer.data.kinds import byte_level_bpe, unigram
from tests.trainer.data.preparing import alike, prepare, trained_texts
from tests.trainer.data.texts import ANSWERS, TEXTS

LANGUAGES = sorted(TEXTS)
PAIRS = [(TEXTS[language], ANSWERS[language]) for language in LANGUAGES]
EOS = "</s>"


def known(tokenizer, text):
    """`text` as this tokenizer gives it back: what is not in its vocabulary is <unk>."""
    return alike(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))


def assert_trained(tokenizer, prepared, expected):
    found = [alike(text) for text in trained_texts(prepared, tokenizer)]
    assert found == [known(tokenizer, text) for text in expected]


def test_one_text_is_trained_after_the_response_template_in_every_script(tmp_path, tokenizer):
    rows = [{"output": f"### Text: {text}\n\n### Label: {answer}"} for text, answer in PAIRS]
    prepared = prepare(
        tmp_path, tokenizer, rows, dataset_text_field="output", response_template="\n### Label:"
    )
    assert_trained(tokenizer, prepared, [f" {answer}{EOS}" for _, answer in PAIRS])


def test_template_with_an_accent_arrives_as_written(tmp_path, tokenizer):
    rows = [{"output": f"{text}\n### Antwort é: {answer}"} for text, answer in PAIRS]
    prepared = prepare(
        tmp_path, tokenizer, rows, dataset_text_field="output", response_template="\n### Antwort é:"
    )
    assert_trained(tokenizer, prepared, [f" {answer}{EOS}" for _, answer in PAIRS])


def test_pairs_are_trained_on_the_answer_in_every_script(tmp_path, tokenizer):
    rows = [{"input": text, "output": answer} for text, answer in PAIRS]
    prepared = prepare(tmp_path, tokenizer, rows)
    assert_trained(tokenizer, prepared, [f" {answer}{EOS}" for _, answer in PAIRS])


def test_formatter_template_fills_columns_in_every_script(tmp_path, tokenizer):
    rows = [{"q": text, "a": answer} for text, answer in PAIRS]
    config = {"data_formatter_template": "{{q}} ### Label: {{a}}", "response_template": " ### Label:"}
    prepared = prepare(tmp_path, tokenizer, rows, **config)
    assert_trained(tokenizer, prepared, [f" {answer}{EOS}" for _, answer in PAIRS])


def test_conversations_are_trained_on_every_assistant_turn_in_every_script(tmp_path, tokenizer):
    roles = ("system", "user", "assistant", "user", "assistant")
    rows = [
        {"messages": [{"role": role, "content": words} for role, words in zip(roles, turns, strict=True)]}
        for turns in (("system", text, answer, text, answer + answer) for text, answer in PAIRS)
    ]
    prepared = prepare(tmp_path, tokenizer, rows)
    expected = [f"{answer}<|im_end|>{answer}{answer}<|im_end|>" for _, answer in PAIRS]
    assert_trained(tokenizer, prepared, expected)


def test_two_templates_over_a_chat_train_between_them(tmp_path, tokenizer):
    rows = [
        {
            "messages": [
                {"role": r, "content": c}
                for r, c in zip(("user", "assistant") * 2, (q, a, q, a), strict=True)
            ]
        }
        for q, a in PAIRS
    ]
    config = {
        "instruction_template": "<|im_start|>user",
        "response_template": "<|im_start|>assistant",
    }
    prepared = prepare(tmp_path, tokenizer, rows, **config)
    turn = "{}<|im_end|>"
    assert_trained(tokenizer, prepared, [turn.format(a) + turn.format(a) + EOS for _, a in PAIRS])


def test_whole_text_is_trained_without_a_response_template(tmp_path, tokenizer):
    prepared = prepare(tmp_path, tokenizer, [{"text": text} for text in TEXTS.values()])
    found = [text.removeprefix("<s>") for text in trained_texts(prepared, tokenizer)]
    assert [alike(text) for text in found] == [known(tokenizer, text + EOS) for text in TEXTS.values()]


def test_last_occurrence_of_the_response_template_counts(tmp_path, bpe):
    rows = [{"text": "### Label: no ### Label: yes"}]
    prepared = prepare(tmp_path, bpe, rows, dataset_text_field="text", response_template="### Label:")
    assert trained_texts(prepared, bpe) == [" yes</s>"]


@pytest.mark.parametrize("template", ["Label:", "### Label:", ":", "\n\n### Label: "])
def test_template_of_any_length_is_found_by_its_text(tmp_path, bpe, template):
    rows = [{"text": "so\n\n### Label: yes"}]
    prepared = prepare(tmp_path, bpe, rows, dataset_text_field="text", response_template=template)
    assert trained_texts(prepared, bpe)[0].strip() == "yes</s>"


@pytest.mark.parametrize("make", [byte_level_bpe, lambda: byte_level_bpe(trim_offsets=True)])
def test_spaces_at_the_start_of_an_answer_are_trained(tmp_path, make):
    tokenizer = make()
    prepared = prepare(tmp_path, tokenizer, [{"prompt": "a:", "completion": "   b  "}])
    assert trained_texts(prepared, tokenizer) == ["   b  </s>"]


def test_token_that_straddles_the_boundary_is_trained(tmp_path, bpe):
    bpe_with_merge = byte_level_bpe()
    bpe_with_merge.add_tokens(["x:yes"])
    prepared = prepare(tmp_path, bpe_with_merge, [{"prompt": "is it x:", "completion": "yes"}])
    assert trained_texts(prepared, bpe_with_merge) == ["x:yes</s>"]


def test_eos_that_the_text_has_already_is_not_doubled(tmp_path, bpe):
    prepared = prepare(tmp_path, bpe, [{"prompt": "a", "completion": " b</s>"}])
    assert trained_texts(prepared, bpe) == [" b</s>"]


def test_eos_that_the_tokenizer_adds_itself_is_trained_once(tmp_path):
    tokenizer = unigram()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    prepared = prepare(tmp_path, tokenizer, [{"prompt": "free", "completion": " born"}])
    assert trained_texts(prepared, tokenizer)[0].count("</s>") == 1
    assert trained_texts(prepared, tokenizer)[0].endswith("</s>")


def test_bos_is_there_and_never_trained(tmp_path):
    tokenizer = unigram()
    prepared = prepare(tmp_path, tokenizer, [{"prompt": "free", "completion": " born"}])
    assert prepared.train[0]["input_ids"][0] == tokenizer.bos_token_id
    assert prepared.train[0]["labels"][0] == -100


def test_text_with_its_tokens_equals_the_tokenizers_own(tmp_path, tokenizer):
    prepared = prepare(tmp_path, tokenizer, [{"text": text} for text in TEXTS.values()])
    own = [tokenizer(text + EOS)["input_ids"] for text in TEXTS.values()]
    assert [row["input_ids"].tolist() for row in prepared.train] == own


def test_row_is_cut_at_its_end_and_counted(tmp_path, bpe):
    rows = [{"prompt": "a", "completion": " b" * 50}, {"prompt": "a", "completion": " b"}]
    prepared = prepare(tmp_path, bpe, rows, max_seq_length=20)
    assert [len(row["input_ids"]) for row in prepared.train] == [20, 3]
    assert prepared.statistics["truncated_rows"] == 1


def test_keep_end_cuts_the_start(tmp_path, bpe):
    rows = [{"prompt": "a" * 50, "completion": " born free"}]
    prepared = prepare(tmp_path, bpe, rows, max_seq_length=8, truncation_mode="keep_end")
    assert trained_texts(prepared, bpe) == [" born free</s>"]
    assert len(prepared.train[0]["input_ids"]) == 8


def test_completion_only_loss_off_trains_the_prompt_too(tmp_path, bpe):
    prepared = prepare(tmp_path, bpe, [{"prompt": "a", "completion": " b"}], completion_only_loss=False)
    assert trained_texts(prepared, bpe) == ["a b</s>"]


def test_slow_tokenizer_is_refused_with_advice(tmp_path):
    class Slow:
        is_fast, name_or_path, eos_token, model_max_length = False, "slow/one", "</s>", 512

    from airflow_provider_sft.contract.errors import ConfigError

    with pytest.raises(ConfigError, match=r"'slow/one' \(Slow\) has no fast version.*tokenizer.json"):
        prepare(tmp_path, Slow(), [{"text": "a"}])
