"""YAML documents know where each key was written, and say so when something is wrong."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from qlora_ray.config.documents import Document, parse_yaml_value, read_document
from qlora_ray.errors import ConfigError


def write(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_key_knows_its_line_or_that_of_its_nearest_ancestor(tmp_path):
    path = write(tmp_path, "# first\nlora:\n  r: 4\n\n  target_modules:\n    - q_proj\n    - v_proj\n")
    document = read_document(path)
    assert document.data == {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}
    assert document.place(("lora",)) == document.place(("lora", "bias")) == f"{path}:2"
    assert document.place(("lora", "r")) == f"{path}:3"
    assert document.place(("lora", "target_modules", 1)) == f"{path}:7"
    assert document.place(("model", "name")) == str(path)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_an_empty_file_is_an_empty_document(tmp_path, text):
    assert read_document(write(tmp_path, text)).data == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {r: 1\n", r"a\.yaml:2: not valid YAML: expected ',' or '}'"),
        ("lora:\n\tr: 1\n", r"a\.yaml:2: not valid YAML: found character '\\t'"),
        ("a: 1\n---\nb: 2\n", r"a\.yaml:2: not valid YAML: but found another"),
        ("? [a, b]\n: 1\n", r"a\.yaml:1: a key must be a text, got a list or a mapping"),
        ("a: 1\nyes: 2\n", r"a\.yaml:2: a key must be a text, got yes\. Put it in quotes"),
        ("a: !!python/object:os.system {}\n", r"a\.yaml:1: a value must be a text, .* got .*python/object:os"),
        ("a: !!bool perhaps\n", r"a\.yaml: not valid YAML: 'perhaps'"),
        ("a: !!binary aGk=\n", r"a\.yaml:1: a value must be .*, got !!binary\. Drop the tag"),
        ("lora:\n  r: &a\n    b: *a\n", r"a\.yaml:2: an alias \(\*name\) stands inside its own anchor"),
        ("a: 1\nb: " + "[" * 5000 + "]" * 5000, r"a\.yaml:2: must be nested at most 40 deep"),
        ("a: 0x" + "f" * 6000 + "\n", r"a\.yaml:1: a number must have at most 100 digits, got 6,002"),
        ("a: " + "9" * 6000 + "\n", r"a\.yaml:1: a number must have at most 100 digits, got 6,000"),
        ("a: '" + "x" * 2**20 + "'\n", r"a\.yaml: must have at most 1,048,576 bytes"),
        ("- a\n- b\n", r"a\.yaml:1: must be a mapping .*, got list"),
        ("hello\n", r"a\.yaml:1: must be a mapping .*, got str"),
        (b"\xff\xfe\x00", r"a\.yaml: cannot be read: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_document(write(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "message"), [("nope.yaml", r"nope\.yaml: no such file"), ("", "cannot be read: Is a directory")]
)
def test_a_path_without_a_file_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        read_document(tmp_path / name)


def nest_aliases(first: str, words: str, levels: int) -> str:
    """Lines of which each names the one before nine times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{at + 1}: &a{at + 1} {words.format(','.join([f'*a{at}'] * 9))}" for at in range(levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(("first", "words"), [("[x, x]", "[{}]"), ("{x: 1}", "{{<<: [{}]}}")])
def test_aliases_that_stand_for_more_values_than_memory_holds_are_counted_and_not_made(tmp_path, first, words):
    assert read_document(write(tmp_path, nest_aliases(first, words, 3))).data["a3"]
    with pytest.raises(ConfigError, match=r"a\.yaml:6: stands for more than 100,000 values, with its aliases"):
        read_document(write(tmp_path, nest_aliases(first, words, 40)))


def test_a_chain_of_aliases_is_as_deep_as_what_it_stands_for(tmp_path):
    lines = ["a0: &a0 [x]", *(f"a{at + 1}: &a{at + 1} [*a{at}]" for at in range(2000))]
    with pytest.raises(ConfigError, match=r"a\.yaml:\d\d: must be nested at most 40 deep"):
        read_document(write(tmp_path, "\n".join(lines)))


def test_what_is_set_at_an_alias_leaves_its_anchor_as_it_was(tmp_path):
    document = read_document(write(tmp_path, "lora: &a {r: 4}\nother: *a\nmerged: {<<: *a, r: 5}\n"))
    document.set("other.r", 8)
    assert document.data == {"lora": {"r": 4}, "other": {"r": 8}, "merged": {"r": 5}}


def test_letters_that_json_writes_as_two_escapes_are_one(tmp_path):
    text = '{"data": {"system_prompt": "a \\ud83d\\ude00"}}'
    assert read_document(write(tmp_path, text)).data == {"data": {"system_prompt": "a \U0001f600"}}


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="the system has no paths of open files")
def test_what_a_command_prints_can_be_a_config():
    # As a shell hands over `--config <(echo ...)`.
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        stream.write("search: {num_trials: 5}\n")
    try:
        assert read_document(Path(f"/dev/fd/{reader}")).data == {"search": {"num_trials": 5}}
    finally:
        os.close(reader)


@pytest.mark.parametrize("opened", ["pipe", "/dev/zero"])
def test_a_pipe_or_device_is_refused_and_not_waited_for(tmp_path, opened):
    path = tmp_path / opened
    if opened == "pipe":
        os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"cannot be read: a (pipe|device), not a regular file"):
        read_document(path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 10_000, "\ud800"])
def test_a_name_that_no_file_system_takes_is_a_file_that_cannot_be_read(name):
    with pytest.raises(ConfigError, match="cannot be read: "):
        read_document(Path(name))


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("a\0b", r"must have no NUL characters, got 'a\\x00b'"),
        ("\ud800", r"must be text that UTF-8 can write, got '\\ud800'"),
        (2**63, "must be a number of at most 64 bits, got one of 64"),
        (-(2**80), "must be a number of at most 64 bits, got one of 81"),
        ({1: 2}, "must have texts as keys, got 1"),
        ({"a\0": 2}, "has a key that must have no NUL characters"),
    ],
)
def test_what_nothing_can_be_done_with_is_refused_wherever_it_is(value, rule):
    document = Document("manifest.json", {"search": {"space": [{"x": value}]}})
    with pytest.raises(ConfigError, match=rf"^manifest\.json: search\.space\.0\.x {rule}"):
        document.check()


def test_sections_that_set_makes_are_no_deeper_than_those_of_a_file():
    document = Document("defaults", {})
    document.set(".".join("a" * 5000), 1)
    with pytest.raises(ConfigError, match="must be nested at most 40 deep"):
        document.check()


def test_all_keys_written_twice_are_named_with_their_second_line(tmp_path):
    path = write(tmp_path, "lora:\n  r: 1\n  r: 2\nsearch:\n  seed: 1\nlora:\n  r: 3\n")
    with pytest.raises(ConfigError, match="written twice") as caught:
        read_document(path)
    assert caught.value.problems == [
        f"{path}:3: lora.r is written twice. Keep one.",
        f"{path}:6: lora is written twice. Keep one.",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("2.e3", 2000.0),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("1_000.5", 1000.5),
        ("3", 3),
        ("0x10", 16),
        ("true", True),
        ("null", None),
        ("", None),
        ("2024-01-05", "2024-01-05"),
        ("a=b", "a=b"),
        ("e4", "e4"),
        ("1e", "1e"),
        (".", "."),
        ("1.2.3", "1.2.3"),
        ("'1e-4'", "1e-4"),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("{a: 1e-4}", {"a": 1e-4}),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        (".nan", math.nan),
    ],
)
def test_a_value_is_read_as_yaml_with_exponents_as_numbers(text, value):
    read = parse_yaml_value(text)
    assert str(read) == str(value) and type(read) is type(value)


def test_setting_a_key_takes_over_its_place_and_those_below_it(tmp_path):
    document = read_document(write(tmp_path, "data:\n  columns:\n    prompt: q\n"))
    document.set("data.columns", {"prompt": "question"})
    assert document.data == {"data": {"columns": {"prompt": "question"}}}
    assert document.place(("data", "columns", "prompt")) == "--set data.columns"


def test_setting_makes_the_sections_on_its_way_and_is_their_place():
    document = Document("defaults", {"lora": None})
    document.set("model.quantization.method", "int8")
    document.set("lora.r", 8)
    assert document.data == {"model": {"quantization": {"method": "int8"}}, "lora": {"r": 8}}
    assert document.place(("model", "name")) == "--set model.quantization.method"
    with pytest.raises(ConfigError, match=r"--set lora\.r\.x: lora\.r is not a section, it is 8\."):
        document.set("lora.r.x", 1)
