"""The Modelfile writes conversations as training wrote them, and names what answers end with."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from qlora_ray.data.templates import choose_template
from qlora_ray.exporting.serving.modelfile import find_rounds, make_modelfile
from tests.unit.data_tokenizer import CHATML, build_byte_level

# SmolLM2's and Qwen2.5's way: a system text of their own where there is none.
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}" + CHATML
)
# Mistral's way: the system text is a part of the first question, and there is no turn of its own.
IN_QUESTION = (
    "{% set lead = '' %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set lead = m['content'] + '\n\n' %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Every question has its number: no round is written as another one.
COUNTING = (
    "{% for m in messages %}{{ m['role'] ~ loop.index ~ ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' ~ (messages | length + 1) ~ ': ' }}{% endif %}"
)
ROUNDS = [("How many orders?", "SELECT 1;"), ("And of {{customers}}?", "")]


def run_go(template: str, values: Mapping[str, str]) -> str:
    """The two things that the Modelfile's template uses of Go's language: a value, and a part that needs one."""
    text = re.sub(
        r"\{\{ if \.(\w+) \}\}(.*?)\{\{ end \}\}", lambda m: m[2] if values[m[1]] else "", template, flags=re.DOTALL
    )
    return re.sub(r"\{\{ \.(\w+) \}\}", lambda m: values[m[1]], text)


def chat_as_ollama(modelfile: str, rounds: list[tuple[str, str]], *, system: str = "") -> str:
    """A conversation by the file's TEMPLATE and SYSTEM: the template once for each round, the last one cut where its
    answer begins (docs/modelfile.mdx)."""
    template = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)[1]
    default = re.search(r'SYSTEM """(.*?)"""', modelfile, re.DOTALL)
    texts = []
    for number, (prompt, answer) in enumerate(rounds):
        own = (system or (default[1] if default else "")) if number == 0 else ""
        part = template if number + 1 < len(rounds) else template[: template.index("{{ .Response }}")]
        texts.append(run_go(part, {"System": own, "Prompt": prompt, "Response": answer}))
    return "".join(texts)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("chat_template", [CHATML, WITH_DEFAULT])
@pytest.mark.parametrize("system", ["", "You write SQL."])
def test_a_conversation_is_written_as_the_chat_template_writes_it(chat_template, system, bos):
    tokenizer = build_byte_level(chat_template=chat_template, bos=bos)
    text, note = make_modelfile(choose_template("auto", tokenizer), tokenizer, ends=["<|im_end|>"])
    for count in (1, 2):
        messages = [{"role": "system", "content": system}] if system else []
        for prompt, answer in ROUNDS[:count]:
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        expected = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert chat_as_ollama(text, ROUNDS[:count], system=system) == expected
    assert note is None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("instruction", "Be kind.\n\n### Instruction:\nHow many orders?\n\n### Response:\n"),
        ("raw", "Be kind.\n\nHow many orders?\n"),
        ("Q: {prompt}\nA: ", "Be kind.\n\nQ: How many orders?\nA: "),
        ("<{system}> {prompt}>", "<Be kind.> How many orders?>"),
    ],
)
def test_the_other_templates_are_told_too(template, expected):
    tokenizer = build_byte_level()
    text, _ = make_modelfile(choose_template(template, tokenizer), tokenizer, ends=["<|im_end|>"])
    assert chat_as_ollama(text, ROUNDS[:1], system="Be kind.") == expected


@pytest.mark.parametrize("chat_template", [COUNTING, CHATML.replace("<|im_start|>", "{{ '{{' }}"), IN_QUESTION])
def test_a_template_that_cannot_be_told_is_left_out_and_that_is_said(chat_template):
    tokenizer = build_byte_level(chat_template=chat_template)
    template = choose_template("auto", tokenizer)
    text, note = make_modelfile(template, tokenizer, ends=["<|im_end|>"])
    assert find_rounds(template, tokenizer) is None
    assert '\nTEMPLATE "' not in text and note is not None and "TEMPLATE" in note


def test_the_file_names_the_gguf_each_end_and_greedy_answers():
    tokenizer = build_byte_level()
    text, _ = make_modelfile(choose_template("auto", tokenizer), tokenizer, ends=["<|im_end|>", "<|endoftext|>"])
    lines = text.splitlines()
    assert "FROM ./merged.gguf" in lines and "PARAMETER temperature 0" in lines
    assert [line for line in lines if line.startswith("PARAMETER stop")] == [
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|endoftext|>"',
    ]
