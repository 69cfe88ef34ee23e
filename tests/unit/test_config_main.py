"""`python -m qlora_ray.config schema` prints a JSON Schema that editors can use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from qlora_ray.config.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def schema(capsys):
    assert main(["schema"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_prints_the_schema_and_nothing_else(schema):
    command = [sys.executable, "-m", "qlora_ray.config", "schema"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == schema and result.stderr == ""


def test_it_is_a_json_schema_that_validates_every_shipped_config(schema):
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    paths = sorted((ROOT / "configs").rglob("*.y*ml"))
    assert paths
    for path in paths:
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora": {"r": 0}}, "minimum of 0"),
        ({"lora": {"rank": 8}}, "'rank' was unexpected"),
        ({"training": {"optim": "sgd"}}, "'sgd' is not one of"),
    ],
)
def test_it_refuses_what_the_config_refuses(schema, config, message):
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(config, schema)


def test_another_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["print"])
    assert "invalid choice: 'print'" in capsys.readouterr().err
