"""What a held-out row asks and expects, and how near an answer comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sft.contract.errors import ConfigError, DataError
from trainer.answers import Question, build_question, score

CHAT = [{"role": "user", "content": "what is 1 plus one?"}, {"role": "assistant", "content": "it is 2."}]


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"input": "a?", "output": "b"}, Question("a?", "b")),
        ({"prompt": "a?", "completion": "b"}, Question("a?", "b")),
        ({"input": "a?", "output": 2}, Question("a?", "2")),
        ({"messages": CHAT}, Question(CHAT[:1], "it is 2.")),
        # Chat wins over other columns, as in training.
        ({"messages": CHAT, "input": "x", "output": "y"}, Question(CHAT[:1], "it is 2.")),
    ],
)
def test_row_asks_its_prompt_and_expects_its_answer(row, question):
    assert build_question(row, where="f line 1") == question


def test_one_text_is_split_at_the_last_template_which_stays_with_the_prompt():
    row = {"text": "### Label: quoted\n### Label: yes"}
    asked = build_question(row, where="f", text_field="text", response_template="### Label:")
    assert asked == Question("### Label: quoted\n### Label:", " yes")


@pytest.mark.parametrize(
    ("row", "keys", "error", "sentence"),
    [
        (
            {"a": 1, "b": 2},
            {},
            DataError,
            "f line 3: the columns are 'a', 'b'. Expected 'messages', 'input' and",
        ),
        (
            {"messages": CHAT[:1]},
            {},
            DataError,
            "f line 3: 'messages' does not end with an assistant's answer.",
        ),
        (
            {"messages": [CHAT[1]]},
            {},
            DataError,
            "f line 3: 'messages' does not end with an assistant's answer.",
        ),
        ({"t": "x"}, {"text_field": "t"}, ConfigError, "--text-field is 't' without --response-template."),
        ({"t": "x"}, {"text_field": "u", "response_template": "y"}, DataError, "f line 3: 'u' is missing."),
        ({"t": "x"}, {"text_field": "t", "response_template": "y"}, DataError, "'y' does not occur in 't'."),
    ],
)
def test_row_without_an_answer_is_named_with_its_line(row, keys, error, sentence):
    with pytest.raises(error, match=sentence):
        build_question(row, where="f line 3", **keys)


def test_scores_go_from_strict_to_lenient():
    answers = ["Paris", " Paris ", "It is paris.", "London"]
    assert score(answers, ["Paris"] * 4) == {
        "exact_match": 0.5,
        "contains": 0.75,
        "token_f1": pytest.approx((1 + 1 + 0.5 + 0) / 4),
    }


def test_token_f1_counts_each_word_as_often_as_it_is_there():
    # Two of three words said are wanted, two of four wanted are said.
    assert score(["a a b"], ["a a c d"])["token_f1"] == pytest.approx(2 * 2 / 7)


def test_scores_of_nothing_are_0():
    assert score([], []) == {"exact_match": 0.0, "contains": 0.0, "token_f1": 0.0}


@given(st.lists(st.tuples(st.text(), st.text())))
def test_scores_lie_between_0_and_1_and_an_exact_answer_is_never_worse(pairs):
    found = score([answer for answer, _ in pairs], [wanted for _, wanted in pairs])
    assert all(0 <= value <= 1 for value in found.values())
    assert found["exact_match"] <= found["contains"]


@given(st.text(min_size=1))
def test_expected_answer_itself_scores_1(text):
    assert set(score([text], [text]).values()) == {1.0}
