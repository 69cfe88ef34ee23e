"""Where the hub's token is found, and that no message has it."""

from __future__ import annotations

import os

import huggingface_hub.constants
import pytest

from qlora_ray.errors import ConfigError
from qlora_ray.exporting.hub_client import find_token, hide_token


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """A folder without .env, an environment without a token, and no login."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_token_is_hidden_however_an_error_writes_it():
    token = "hf_lineone\nhf_linetwo"
    for text in (f"Illegal header value {f'Bearer {token}'.encode()!r}", f"got {token}", "line 2: hf_linetwo"):
        assert "hf_line" not in hide_token(text, token) and "***" in hide_token(text, token)


def test_the_token_is_of_the_environment_before_the_file_and_a_login_comes_last(monkeypatch, tmp_path):
    assert find_token() is None
    (tmp_path / "login").write_text("hf_login\n")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "login"))
    assert find_token() == "hf_login"
    (tmp_path / ".env").write_text('OTHER=1\nHF_TOKEN="hf_file"\n')
    assert find_token() == "hf_file"
    assert "HF_TOKEN" not in os.environ
    for blank_or_not, found in (("  ", "hf_file"), (" hf_environment\n", "hf_environment")):
        monkeypatch.setenv("HF_TOKEN", blank_or_not)
        assert find_token() == found


def test_an_env_file_in_another_encoding_is_said_to_be(tmp_path):
    (tmp_path / ".env").write_bytes(b"HF_TOKEN=hf_abc\nNAME=caf\xe9\n")
    with pytest.raises(ConfigError, match=r"\.env: must be UTF-8 text, got other bytes"):
        find_token()
