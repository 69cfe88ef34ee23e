"""A chat template that loops for ever or asks for gigabytes is one line, and a row it loops over is another."""

from __future__ import annotations

import pytest

from qlora_ray.data import chat, template_trial
from qlora_ray.data.chat import render_chat
from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.template_trial import check_template
from qlora_ray.errors import DataError
from tests.unit.data_tokenizer import CHATML, build_byte_level

pytestmark = pytest.mark.slow

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template", [CHATML, "{{ raise_exception('no') }}", "{% for %}", "{{ 1 / 0 }}", "{{ bos_token + 5 }}", ""]
)
def test_templates_that_end_pass_whatever_they_refuse(template: str) -> None:
    check_template(build_byte_level(chat_template=template))


@pytest.mark.parametrize(
    "template",
    [
        LOOPS,
        "{{ 'x' * 10**10 }}",
        "{{ 'x' * 10**7 }}",
        "{% set n = messages|length + 8 %}{{ n ** (n ** (n + 1)) }}",
        "{{ 9 ** (9 ** 10) }}",
        "{{ '%9999999999d' % 1 }}",
    ],
)
def test_templates_without_end_are_one_line(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_trial, "LIMIT_S", 5)
    with pytest.raises(DataError, match=r"the base's chat template must render a conversation of five short turns"):
        check_template(build_byte_level(chat_template=template))


def test_a_template_that_loops_over_a_row_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "ROW_LIMIT_S", 0.2)
    tokenizer = build_byte_level(chat_template="{% if 'loop' in messages[0]['content'] %}" + LOOPS + "{% endif %}")
    check_template(tokenizer)
    row = Example((Turn("user", "loop"), Turn("assistant", "x")), "rows.jsonl:1")
    with pytest.raises(DataError, match=r"^rows.jsonl:1: the base's chat template must render it, but it took more"):
        render_chat(row, tokenizer, last_only=False)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% for i in range(10**9) %}{% endfor %}", "{{ messages[9].x.y }}"]
)
def test_whatever_a_template_raises_is_one_line(template: str) -> None:
    row = Example((Turn("user", "a"), Turn("assistant", "x")), "rows.jsonl:1")
    with pytest.raises(DataError, match=r"^rows.jsonl:1: the chat template must accept the turns user, assistant, got"):
        render_chat(row, build_byte_level(chat_template=template), last_only=False)
