"""Whether the beginning of an SQL text can still become one statement that runs.

SQLite's own parser decides. It reads token after token and stops at the first one that no statement has there, so that
what it refuses stays refused whatever follows. It is asked without a database, and nothing is compiled or run.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

# SQLite's tokens as far as they tell where one ends. What is open at the end of the text may still be anything.
_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))
    |(?P<quoted>'(?:[^']|'')*+'|"(?:[^"]|"")*+"|`(?:[^`]|``)*+`|\[[^\]]*\])
    |(?P<open>['"`\[].*)
    |(?P<semicolon>;)
    |(?P<other>\w+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CLOSING = {"[": "]"}
# Where these stand, SQLite looks at the tokens behind them before it knows what they are (tokenize.c).
_LOOKS_AHEAD = frozenset(("OVER", "WINDOW", "FILTER"))
# No token of SQLite's: it reports it as such when the parser has accepted all before it, and compiles nothing.
_NO_TOKEN = "\x01"
_REFUSED = re.compile(r'near ".*": syntax error|unrecognized token: "(?!\x01").*"', re.DOTALL)


def can_become_statement(text: str) -> bool:
    """Returns whether something can follow `text` that makes it one SQL statement; true where that is not sure."""
    matches = list(_TOKEN.finditer(text))
    spaces = [at for at, match in enumerate(matches) if match.lastgroup == "space"]
    open_quote = ""
    if matches and matches[-1].lastgroup == "open" and (len(matches) == 1 or spaces[-1:] == [len(matches) - 2]):
        # Whatever follows, this is one quoted token, or an error.
        open_quote = matches.pop()[0][0]
        num_ended = len(matches)
    else:
        # Tokens end at white space at the latest.
        num_ended = spaces[-1] if spaces else 0
    ended = [match for match in matches[:num_ended] if match.lastgroup != "space"]
    if not (ended or open_quote) or (ended and ended[-1][0].upper() in _LOOKS_AHEAD):
        return True
    semicolon = next((at for at, match in enumerate(ended) if match.lastgroup == "semicolon"), None)
    if semicolon is not None:
        # A second statement is an error, whatever the first one is; white space and comments are none.
        return semicolon == 0 or all(match.lastgroup == "semicolon" for match in ended[semicolon:])
    quoted = f" {open_quote}x{_CLOSING.get(open_quote, open_quote)}"
    return not _is_refused((text[: ended[-1].end()] if ended else "") + (quoted if open_quote else ""))


def _is_refused(text: str) -> bool:
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(f"{text} {_NO_TOKEN}")
        except sqlite3.Error as error:
            return _REFUSED.fullmatch(str(error)) is not None
        except (ValueError, sqlite3.Warning):
            # A null character, or half a surrogate pair.
            return False
    return False
