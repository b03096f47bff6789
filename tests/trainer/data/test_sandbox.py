"""Hostile templates: each ends in seconds with 64 and the key, whatever it multiplies, nests or repeats."""

from __future__ import annotations

import resource

import pytest

from airflow_provider_sft.contract.errors import ConfigError
from tests.trainer.data.kinds import byte_level_bpe
from tests.trainer.data.preparing import prepare
from tests.trainer.data.test_handlers import handler, run

HOSTILE = {
    "mul": "{{ 'a' * 10**10 }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "outloops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    + "x" * 1000
    + "{% endfor %}{% endfor %}",
    "double": "{% set n = namespace(x='aaaaaaaa') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "double~": "{% set n = namespace(x='aaaaaaaa') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "nest": "{% set n = namespace(x=[1]) %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "nestcmp": "{% set n = namespace(x=[1],y=[1]) %}{% for a in range(60) %}{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}{% endfor %}{{ n.x == n.y }}",
    "dictcall": "{% set n = namespace(x=1) %}{% for a in range(99) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}",
    "center": "{{ 'a'|center(10**10) }}",
    "indent": "{{ ('a\n'*1000)|indent(10**7) }}",
    "format": "{{ '%9999999999d'|format(1) }}",
    "pct": "{{ '%9999999999d' % 1 }}",
    "pctstar": "{{ '%*d' % (10**10, 1) }}",
    "fmt": "{{ '{:>9999999999}'.format(1) }}",
    "fmt2": "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "tabs": "{{ ('\t'*10000).expandtabs(10**7) }}",
    "replace": "{{ ('a'*100000)|replace('a','b'*100000) }}",
    "replacem": "{{ ('a'*100000).replace('a','b'*100000) }}",
    "join": "{{ range(99999)|join('b'*100000) }}",
    "joinm": "{{ ('b'*100000).join(['a']*100000) }}",
    "listmul": "{{ [0]*10**9 }}",
    "bigs": "{{ ['a'*10**6]*10**5 }}",
    "tojson": "{{ ([1]*10000)|tojson(indent=10**8) }}",
    "macro": "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "squares": "{% set n=namespace(x=3) %}{% for a in range(99) %}{% set n.x = n.x*n.x %}{% endfor %}{{ n.x }}",
    "translate": "{{ ('a'*10**6).translate({97:'b'*10**6}) }}",
    "slice": "{{ range(9)|slice(10**10)|list }}",
    "sum": "{{ ([[1]]*99999)|sum(start=[]) }}",
    "map": "{{ ['a'*100000]|map('replace','a','b'*100000)|list }}",
    "nestfor": "{% for a in range(2) %}" * 30 + "{% endfor %}" * 30,
    "recur": "{% for x in [[1]] recursive %}{{ loop(x) if x is iterable else x }}{{ loop([[1]]) }}{% endfor %}",
}
CHAT = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "one"}]
MAX_MB = 1500


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_formatter_ends_64_with_its_key(tmp_path, bpe, name):
    with pytest.raises(ConfigError, match="data_formatter_template is stopped: it"):
        prepare(tmp_path, bpe, [{"q": "why?"}], data_formatter_template="{{q}}" + HOSTILE[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MAX_MB * 1024


@pytest.mark.parametrize("name", ["mul", "loops", "double~", "fmt", "tojson", "nestcmp"])
def test_hostile_chat_template_ends_64_with_its_key(tmp_path, name):
    tokenizer = byte_level_bpe()
    with pytest.raises(ConfigError, match=r"chat_template \(or the tokenizer's own\) is stopped: it"):
        prepare(tmp_path, tokenizer, [{"messages": CHAT}], chat_template=HOSTILE[name])


def test_hostile_template_of_a_handler_ends_64_with_its_place(tmp_path, bpe):
    template = handler("apply_custom_jinja_template", formatted_text_column_name="t", template=HOSTILE["mul"])
    with pytest.raises(
        ConfigError, match=r"data_handlers\[0\] \(apply_custom_jinja_template\): template is stopped"
    ):
        run(tmp_path, bpe, [template])


HARMLESS = {
    "{{ '%05.2f' % 1.5 }}{{ '%s-%s'|format(q, 2) }}{{ '{:>8}'.format(q) }}": "01.50why?-2    why?",
    "{{ ([q] * 3)|join(', ') }}{{ q ~ 1 ~ [q, (1, 2)] }}": "why?, why?, why?why?1['why?', (1, 2)]",
    "{{ q|replace('w', 'W' * 3)|center(10)|upper }}{{ 2**10 }}{{ {'a': q}['a'] }}": "  WWWHY?  1024why?",
    "{% set n = namespace(x='') %}{% for a, b in [(1, 2), (3, 4)] %}{% set n.x = n.x + q[a:b] %}{% endfor %}{{ n.x }}": "h?",
    "{% for c in q|list recursive %}{{ loop.index }}{{ c }}{% if not loop.last %},{% endif %}{% endfor %}": "1w,2h,3y,4?",
    "{{ [{'a': 2}, {'a': 1}]|sort(attribute='a')|map(attribute='a')|join('\n') }}": "1\n2",
}


@pytest.mark.parametrize("template", HARMLESS)
def test_harmless_template_writes_what_jinja_writes(tmp_path, bpe, template):
    prepared = prepare(tmp_path, bpe, [{"q": "why?"}], data_formatter_template=template)
    assert bpe.decode(prepared.train[0]["input_ids"]) == HARMLESS[template] + "</s>"
