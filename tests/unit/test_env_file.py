"""The token of .env comes into the environment of every command, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_ray.commands import Result, run_command
from qlora_ray.env_file import find_in_env_file, find_in_environment, load_token
from qlora_ray.errors import ConfigError


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder without .env, and an environment without a token, which is put back after the test."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_a_commands_work_finds_the_token_where_the_libraries_look_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import get_token

    Path(".env").write_text('OTHER_OF_MINE=1\nHF_TOKEN="hf_file"\n')
    seen: list[str | None] = []
    assert run_command(lambda: seen.append(get_token()) or Result({})) == 0
    assert seen == ["hf_file"]
    assert "OTHER_OF_MINE" not in os.environ
    assert capfd.readouterr() == ("", "")


def test_a_token_of_the_environment_stays_and_a_blank_one_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("HF_TOKEN=hf_file\n")
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    load_token()
    assert os.environ["HF_TOKEN"] == "hf_environment"
    monkeypatch.setenv("HF_TOKEN", " ")
    load_token()
    assert os.environ["HF_TOKEN"] == "hf_file"


@pytest.mark.parametrize("content", [b"", b"HF_TOKEN=\n", b"HF_TOKEN=hf_caf\xe9\n", "HF_TOKEN=hf_café\n".encode()])
def test_a_file_without_a_token_that_can_be_sent_stops_no_command(content: bytes) -> None:
    Path(".env").write_bytes(content)
    assert run_command(lambda: Result({})) == 0
    assert "HF_TOKEN" not in os.environ


def test_a_token_that_cannot_be_sent_is_said_and_not_quoted() -> None:
    Path(".env").write_text("HF_TOKEN=hf_café\n")
    with pytest.raises(ConfigError, match=r"^HF_TOKEN in \.env: must be one line of printable ASCII") as caught:
        find_in_env_file()
    assert "hf_caf" not in str(caught.value)


def test_the_token_of_the_environment_may_have_the_librarys_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import get_token

    Path(".env").write_text("HF_TOKEN=hf_file\n")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_environment")
    load_token()
    assert get_token() == "hf_environment" == find_in_environment()


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_of_the_environment_that_cannot_be_sent_ends_a_command_and_is_not_quoted(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "hf_se\x0bcret")
    assert run_command(lambda: Result({})) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"{name} in the environment: must be one line of printable ASCII") and "cret" not in said


def test_lines_that_are_no_settings_are_another_programs_and_not_told(capfd: pytest.CaptureFixture[str]) -> None:
    Path(".env").write_text("[section]\nsome words of mine\nHF_TOKEN=hf_file\n")
    assert run_command(lambda: Result({})) == 0
    assert os.environ["HF_TOKEN"] == "hf_file"
    assert capfd.readouterr() == ("", "")


def test_a_token_may_be_named_by_another_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("HF_TOKEN=${MY_TOKEN_OF_THE_HUB}\n")
    assert find_in_env_file() is None
    monkeypatch.setenv("MY_TOKEN_OF_THE_HUB", "hf_mine")
    assert find_in_env_file() == "hf_mine"


def test_a_pipe_is_not_waited_for() -> None:
    os.mkfifo(".env")
    with pytest.raises(ConfigError, match=r"^\.env: cannot be read: a pipe, not a regular file"):
        find_in_env_file()
