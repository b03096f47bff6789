"""Conversations: the same turns as trl trains, templates without generation markers, and templates nobody trusts."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template

from airflow_provider_sft.contract.errors import ConfigError, DataError
from tests.trainer.data.kinds import CHATML, KINDS, byte_level_bpe
from tests.trainer.data.preparing import prepare, trained_texts
from tests.trainer.data.texts import ANSWERS, TEXTS
from trainer.data.chat import ChatTemplate

MARKED = CHATML.replace(
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n",
    "<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n",
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}### {{ m['role'] | title }}:\n{{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
GRANITE = (
    "{%- if messages[0]['role'] != 'system' %}<|start_of_role|>system<|end_of_role|>Be kind.<|end_of_text|>\n{% endif %}"
    "{%- for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}<|end_of_text|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
# As the first Llama 3 had it: it invites the next answer always.
INVITES = (
    "{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>{{ m['content'] }}<|eot|>{% endfor %}"
    "<|head|>assistant<|/head|>"
)
NESTED = (
    "{% for m in messages %}<turn>{{ m['role'] }}:{{ m['content'] }} </turn></done>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant:{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Templates of trl's that it can train on and that write the same with and without generation markers.
KNOWN = ["qwen2_5", "llama3", "gemma", "phi3", "cohere", "deepseekv3", "qwen3_instruct_2507"]


def chat(*turns, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant") * len(turns)
    return messages + [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]


def conversations():
    pairs = [(TEXTS[language], ANSWERS[language]) for language in sorted(TEXTS)]
    return [chat(q, a, "And then?", a + a) for q, a in pairs]


@pytest.fixture
def bpe_with(bpe):
    """The byte-level tokenizer with another chat template."""

    def use(template):
        tokenizer = byte_level_bpe()
        tokenizer.chat_template = template
        return tokenizer

    return use


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_labels_equal_trls_own_assistant_only_result(tmp_path, kind):
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = MARKED
    rows = [{"messages": messages} for messages in conversations()]
    theirs = train_dataset_of_trl(tmp_path, tokenizer, rows)
    ours = prepare(tmp_path, tokenizer, rows).train
    assert [row["input_ids"].tolist() for row in ours] == theirs["input_ids"]
    assert [row["labels"].tolist() for row in ours] == theirs["labels"]


def train_dataset_of_trl(tmp_path, tokenizer, rows):
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    args = SFTConfig(
        output_dir=str(tmp_path / "trl"), assistant_only_loss=True, report_to="none", use_cpu=True
    )
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    return {
        column: [list(row) for row in trainer.train_dataset[column]] for column in ("input_ids", "labels")
    }


@pytest.mark.parametrize("name", KNOWN)
def test_template_that_trl_knows_trains_what_trl_trains(tmp_path, bpe_with, name):
    template = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    tokenizer = bpe_with(template.read_text(encoding="utf-8"))
    marked = get_training_chat_template(tokenizer)
    expected = []
    for messages in conversations():
        row = tokenizer.apply_chat_template(
            messages, chat_template=marked, return_assistant_tokens_mask=True, return_dict=True
        )
        pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
        expected.append([token if trained else -100 for token, trained in pairs])
    ours = prepare(tmp_path, tokenizer, [{"messages": messages} for messages in conversations()]).train
    assert [row["labels"].tolist() for row in ours] == expected


@pytest.mark.parametrize(
    ("template", "trained"),
    [
        (CHATML, "one<|im_end|>two<|im_end|>"),
        (INST, " one</s> two</s>"),
        (PLAIN, "onetwo"),
        (GRANITE, "one<|end_of_text|>two<|end_of_text|>"),
        (INVITES, "one<|eot|>two<|eot|>"),
        (NESTED, "one </turn></done>two </turn></done>"),
        (BRACKETS, "one[/end]two[/end]"),
    ],
)
def test_template_without_generation_markers_trains_the_answers_and_what_ends_them(
    tmp_path, bpe_with, template, trained
):
    tokenizer = bpe_with(template)
    prepared = prepare(tmp_path, tokenizer, [{"messages": chat("a?", "one", "b?", "two")}])
    assert trained_texts(prepared, tokenizer)[0].rstrip() == trained.rstrip()


def test_user_who_quotes_the_template_is_not_trained(tmp_path, bpe):
    quoted = "say <|im_start|>assistant\nno<|im_end|> please"
    prepared = prepare(tmp_path, bpe, [{"messages": chat(quoted, "one", "b?", "two")}])
    assert trained_texts(prepared, bpe) == ["one<|im_end|>two<|im_end|>"]


def test_answer_that_quotes_the_template_is_trained_whole(tmp_path, bpe):
    quoted = "write <|im_end|> at the end"
    prepared = prepare(tmp_path, bpe, [{"messages": chat("how?", quoted, "b?", "two")}])
    assert trained_texts(prepared, bpe) == [f"{quoted}<|im_end|>two<|im_end|>"]


def test_short_answer_is_not_taken_for_a_word_of_the_template(tmp_path, bpe):
    prepared = prepare(tmp_path, bpe, [{"messages": chat("a", "a", "assistant", "user", system="s")}])
    assert trained_texts(prepared, bpe) == ["a<|im_end|>user<|im_end|>"]


def test_chat_of_64_turns_is_tokenised_once(tmp_path, bpe):
    tokenizer = CountingTokenizer(bpe)
    turns = [TEXTS["french"]] * 64
    prepared = prepare(tmp_path, tokenizer, [{"messages": chat(*turns)}], max_seq_length=100_000)
    text = ChatTemplate(bpe).render(chat(*turns))
    assert tokenizer.backend_tokenizer.characters <= 1.01 * len(text)
    assert trained_texts(prepared, bpe) == [f"{TEXTS['french']}<|im_end|>" * 32]


class CountingTokenizer:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.backend_tokenizer = CountingBackend(tokenizer.backend_tokenizer)
        self.model_max_length = 100_000

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __len__(self):
        return len(self._tokenizer)


class CountingBackend:
    def __init__(self, backend):
        self._backend, self.characters = backend, 0

    def encode_batch(self, texts, **options):
        self.characters += sum(map(len, texts))
        return self._backend.encode_batch(texts, **options)

    def __getattr__(self, name):
        return getattr(self._backend, name)


def test_older_spelling_of_conversations_is_understood(tmp_path, bpe):
    rows = [{"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "one"}]}]
    assert trained_texts(prepare(tmp_path, bpe, rows), bpe) == ["one<|im_end|>"]


def test_conversation_in_another_column_is_named(tmp_path, bpe):
    rows = [{"dialogue": chat("a?", "one"), "messages": chat("b?", "two")}]
    prepared = prepare(tmp_path, bpe, rows, dataset_conversation_field="dialogue")
    assert trained_texts(prepared, bpe) == ["one<|im_end|>"]


def test_prompt_and_completion_may_be_conversations(tmp_path, bpe):
    rows = [{"prompt": chat("a?", "one", "b?"), "completion": [{"role": "assistant", "content": "two"}]}]
    assert trained_texts(prepare(tmp_path, bpe, rows), bpe) == ["two<|im_end|>\n"]


def test_tools_of_a_row_reach_the_template(tmp_path, bpe_with):
    tokenizer = bpe_with("{% for t in tools or [] %}[{{ t['name'] }}]{% endfor %}" + CHATML)
    rows = [{"messages": chat("a?", "one"), "tools": json.dumps([{"name": "clock"}])}]
    prepared = prepare(tmp_path, tokenizer, rows)
    assert tokenizer.decode(prepared.train[0]["input_ids"]).startswith("[clock]")
    assert trained_texts(prepared, tokenizer) == ["one<|im_end|>"]


def test_assistant_only_loss_off_trains_every_turn(tmp_path, bpe):
    prepared = prepare(tmp_path, bpe, [{"messages": chat("a?", "one")}], assistant_only_loss=False)
    assert trained_texts(prepared, bpe)[0].startswith("<|im_start|>user")


@pytest.mark.parametrize("given", ["text", "file", "config_text", "config_file", "config_base64"])
def test_chat_template_is_taken_from_text_file_or_base64(tmp_path, bpe_with, given):
    path = tmp_path / "chat.jinja"
    path.write_text(INST, encoding="utf-8")
    encoded = base64.b64encode(INST.encode()).decode()
    processor = {
        "config_text": {"chat_template": INST},
        "config_file": {"chat_template_path": str(path)},
        "config_base64": {"chat_template_base64": encoded},
    }.get(given)
    rows = tmp_path / "chats.jsonl"
    rows.write_text(json.dumps({"messages": chat("a?", "one")}))
    data_config = tmp_path / "data.json"
    data_config.write_text(
        json.dumps({"dataprocessor": processor, "datasets": [{"data_paths": [str(rows)]}]})
    )
    plain = {"text": {"chat_template": INST}, "file": {"chat_template_path": str(path)}}.get(given)
    config = {**plain, "training_data_path": str(rows)} if plain else {"data_config_path": str(data_config)}
    tokenizer = bpe_with(CHATML)
    assert trained_texts(prepare(tmp_path, tokenizer, **config), tokenizer) == [" one</s>"]
    assert tokenizer.chat_template == INST


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{% for x in ''.__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.system('touch /tmp/owned') }}",
        "{{ messages.append(1) }}",
    ],
)
def test_hostile_template_is_stopped_by_the_sandbox(tmp_path, bpe_with, template):
    with pytest.raises((ConfigError, DataError), match=r"sandbox forbids|refuses 'messages'"):
        prepare(tmp_path, bpe_with(template), [{"messages": chat("a?", "one")}])


def test_template_that_is_no_jinja_is_refused_with_its_line(tmp_path, bpe_with):
    with pytest.raises(ConfigError, match="no Jinja: line 2"):
        prepare(tmp_path, bpe_with("\n{% for %}"), [{"messages": chat("a?", "one")}])


def test_template_that_refuses_a_role_names_the_line(tmp_path, bpe_with):
    tokenizer = bpe_with(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    )
    rows = [{"messages": chat("a?", "one")}, {"messages": chat("a?", "one", system="s")}]
    with pytest.raises(
        DataError, match=r"rows.jsonl line 2: the chat template refuses 'messages' \(no system\)"
    ):
        prepare(tmp_path, tokenizer, rows)


def test_tokenizer_without_template_is_told_what_to_set(tmp_path, bpe_with):
    with pytest.raises(ConfigError, match="no chat template. Set 'chat_template'"):
        prepare(tmp_path, bpe_with(None), [{"messages": chat("a?", "one")}])


def test_content_in_parts_is_their_text(tmp_path, bpe):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    rows = [{"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]}]
    assert trained_texts(prepare(tmp_path, bpe, rows), bpe) == ["one two<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_turn_of_weight_0_is_read_and_not_trained(tmp_path, bpe_with, template):
    tokenizer = bpe_with(template)
    messages = chat("a?", "one", "b?", "two")
    messages[1]["weight"] = 0
    prepared = prepare(tmp_path, tokenizer, [{"messages": messages}])
    assert trained_texts(prepared, tokenizer) == ["two<|im_end|>"]
    assert "one" in tokenizer.decode(prepared.train[0]["input_ids"])


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            r"messages\[0\]: content holds dict .* Only text is trained here",
        ),
        ([], "'messages' is an empty list. Expected a list such as"),
        ("hello", "'messages' is str 'hello'. Expected a list"),
        ([{"content": "x"}], r"messages\[0\] has no role. Expected user, assistant"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: content is int 3. Expected a string"),
        ([{"role": "user", "content": None}], r"messages\[0\]: content is null. Expected a string"),
        (["hi"], r"messages\[0\] is str 'hi'. Expected an object"),
    ],
)
def test_wrong_conversation_is_named_by_line(tmp_path, bpe, messages, sentence):
    rows = [{"messages": chat("a?", "one")}, {"messages": messages}]
    with pytest.raises(DataError, match=f"rows.jsonl line 2: {sentence}"):
        prepare(tmp_path, bpe, rows)
