"""YAML documents know where each key was written, and say so when something is wrong."""

from __future__ import annotations

import math

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
        ("? [a, b]\n: 1\n", r"a\.yaml:1: not valid YAML: found unhashable"),
        ("a: !!python/object:os.system {}\n", r"a\.yaml:1: not valid YAML: .*constructor"),
        ("day: 2024-13-45\n", r"a\.yaml: not valid YAML: month"),
        ("lora: &a\n  r: *a\n", r"a\.yaml: an alias \(\*name\)"),
        ("- a\n- b\n", r"a\.yaml:1: must be a mapping .*, got list"),
        ("hello\n", r"a\.yaml:1: must be a mapping .*, got str"),
        (b"\xff\xfe\x00", r"a\.yaml: cannot be read: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_document(write(tmp_path, text))


@pytest.mark.parametrize(("name", "message"), [("nope.yaml", r"nope\.yaml: no such file"), ("", "Is a directory")])
def test_a_path_without_a_file_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        read_document(tmp_path / name)


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
