"""A chat template that loops for ever or asks for gigabytes is one line, and a row it loops over is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ray.data import chat, template_judge, template_trial
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


def test_each_of_several_named_templates_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_trial, "LIMIT_S", 5)
    check_template(build_byte_level(chat_template={"tool_use": CHATML, "rag": CHATML}))
    with pytest.raises(DataError, match=r"must render a conversation"):
        check_template(build_byte_level(chat_template={"default": CHATML, "tool_use": LOOPS}))


def test_what_libraries_have_mapped_before_is_no_part_of_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads' stacks, on a machine of 64 cores: 3 GiB of addresses, and no memory.
    script = Path(template_judge.__file__).read_text()
    mapped = "import mmap\n_HELD = mmap.mmap(-1, 3 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\n"
    judge = tmp_path / "judge.py"
    judge.write_text(script.replace("import json\n", f"{mapped}import json\n", 1))
    monkeypatch.setattr(template_judge, "__file__", str(judge))
    check_template(build_byte_level(chat_template=CHATML + "{# mapped #}"))


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
