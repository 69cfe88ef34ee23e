"""The process in which a chat template is tried: template and conversations come as JSON, a word goes out.

It imports nothing of this project, and is run as a script by template_trial.py. A template is a program, which may loop
for ever or ask for all the memory there is, in C code that no signal ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
from pathlib import Path
from typing import Any

# Ours, of this process; transformers' renderer takes 0.2 GB. Windows and macOS have no such limit, there time ends it.
MAX_MEMORY_BYTES = 2 * 2**30
# Ours: of a conversation of five short turns; the longest prompts of tools that come with a template are 10,000.
MAX_LETTERS = 1_000_000

STARTED, FINE, TOO_LONG = "template_judge: started", "fine", "too long"


def main() -> None:
    """Reads what template_trial.py asks from stdin, and writes FINE or TOO_LONG; what a template refuses is fine."""
    from transformers.utils.chat_template_utils import render_jinja_template

    asked = json.load(sys.stdin)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        # Beside what the libraries have mapped by now: threads of theirs take address space by the number of cores.
        pages, _ = Path("/proc/self/statm").read_text().split(maxsplit=1)
        limit_bytes = int(pages) * resource.getpagesize() + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    # A thread in C: it ends the process whatever that is doing.
    faulthandler.dump_traceback_later(asked["limit_s"], exit=True)
    print(STARTED, flush=True)  # noqa: T201
    longest = 0
    for conversation, has_prompt in asked["conversations"]:
        try:
            rendered: Any = render_jinja_template(
                [conversation], chat_template=asked["template"], add_generation_prompt=has_prompt, **asked["values"]
            )
        except MemoryError:
            longest = MAX_LETTERS + 1
        # What a template refuses, and a template that is none, the rows' own rendering says better.
        except Exception:
            continue
        else:
            longest = max(longest, len(rendered[0][0]))
    faulthandler.cancel_dump_traceback_later()
    print(FINE if longest <= MAX_LETTERS else TOO_LONG, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
