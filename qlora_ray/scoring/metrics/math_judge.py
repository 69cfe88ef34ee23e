"""The process in which math-verify compares answers: pairs of texts come as JSON, a word for each goes out.

It imports nothing of this project, and is run as a script by math_verification.py.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import sys

# Ours: pairs of MATH take milliseconds. Parsing and comparing have their own limit of 5 s each in math-verify, which
# C code does not heed.
LIMIT_S = 20
# Ours, of this process: powers of powers ask for all the memory there is.
MAX_MEMORY_BYTES = 4 * 2**30

EQUAL, DIFFERENT, UNREADABLE = "equal", "different", "unreadable"
STARTED = "math_judge: started"


def main() -> None:
    """Reads [[reference, answer], ...] from stdin and writes a word per line."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    # Windows and macOS have no such limit; there the time alone ends a pair.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    print(STARTED, file=sys.stderr, flush=True)  # noqa: T201
    for reference, answer in json.load(sys.stdin):
        # A thread in C: it ends the process whatever that is doing.
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        try:
            expected = parse(reference)
            outcome = (EQUAL if verify(expected, parse(answer)) else DIFFERENT) if expected else UNREADABLE
        except Exception:
            # Whatever sympy raises on it: it is not shown to be equal.
            outcome = DIFFERENT
        print(outcome, flush=True)  # noqa: T201
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
