"""Options that ask for nothing, and models that are not there."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_ray.errors import ConfigError
from qlora_ray.evaluation.run.options import Options, check_options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_shots": 0}, r"--lm-eval-shots 0: needs --lm-eval tasks, got none\. Name one"),
        ({"max_prompts": 3}, r"--max-prompts 3: needs --prompts files, got none\. Name one"),
    ],
)
def test_an_option_of_what_is_not_asked_for_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_options(Options("embedded", **options))


def test_options_of_what_is_asked_for_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ray.evaluation.run.options.check_installed", lambda: None)
    check_options(Options("embedded", prompt_files=["red_team"], max_prompts=3, tasks=["sums"], task_shots=0))
