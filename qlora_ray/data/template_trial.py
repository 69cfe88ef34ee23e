"""A chat template is tried on a small conversation before it renders any row, in a process that can be ended."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from qlora_ray.data import template_judge
from qlora_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ours: templates take milliseconds. Of the trial, and of the rendering of one row: a template may loop over its text.
LIMIT_S = ROW_LIMIT_S = 20
# One conversation gains nothing by threads, whose stacks are 64 times 40 MB of address space on a large machine.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ADVICE = "Take another base, mend its template, or set data.template to instruction."

_ROUNDS = [{"role": role, "content": f"{role} {number}"} for number in (1, 2) for role in ("user", "assistant")]
# Conversations as rows and questions have them, and whether an answer is asked for.
_CONVERSATIONS = [
    (_ROUNDS[:1], True),
    (_ROUNDS, False),
    ([{"role": "system", "content": "system"}, *_ROUNDS], False),
]


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises DataError if a tokenizer's chat template takes more time or memory than any conversation could need."""
    texts = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    named = tokenizer.chat_template
    templates = named.values() if isinstance(named, dict) else [tokenizer.get_chat_template()]
    for template in templates:
        _try_out(template, tuple(sorted(texts.items())))


@functools.lru_cache(maxsize=16)
def _try_out(template: str, values: tuple[tuple[str, str], ...]) -> None:
    asked: dict[str, Any] = {
        "template": template,
        "conversations": _CONVERSATIONS,
        "values": dict(values),
        "limit_s": LIMIT_S,
    }
    # -P: files beside the script are not modules of other packages.
    done = subprocess.run(
        [sys.executable, "-P", template_judge.__file__],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **dict.fromkeys(ONE_THREAD, "1")},
    )
    said = done.stdout.splitlines()
    if template_judge.STARTED not in said:
        raise RuntimeError(f"the trial of the chat template does not start: {done.stderr.strip()[-500:]}")
    if template_judge.FINE not in said:
        raise DataError(
            f"data.template: the base's chat template must render a conversation of five short turns within "
            f"{LIMIT_S} s, {template_judge.MAX_MEMORY_BYTES >> 30} GiB and "
            f"{template_judge.MAX_LETTERS:,} letters, got more. {ADVICE}"
        )
