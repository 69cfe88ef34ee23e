"""Which unit tests can run on any operating system: those whose file needs nothing of Unix, by what stands in it."""

from __future__ import annotations

import re

# Ray itself, processes and their signals, modes and links of files, devices, shells, a browser, and what is Linux's.
_NEEDS = re.compile(
    r"^\s*(?:import|from) (?:ray|fcntl|resource|pwd|pty|psutil|select|signal|playwright|tests\.browsing)\b"
    r"|\bos\.(?:fork|kill|killpg|mkfifo|link|symlink|getuid|geteuid|chmod|umask|mkdir|nice|uname|sched_\w+)\b"
    r"|\.(?:symlink_to|hardlink_to|chmod|is_mount)\("
    r"|[\"'](?:/proc|/dev|/bin|/usr|/etc|/sys|/tmp|/nfs)\b|#!/bin|\bunshare\b|\bchromium\b|SIG(?!INT|TERM|NATURE)[A-Z]+",
    re.MULTILINE,
)


def is_portable(source: str) -> bool:
    """Returns whether a test file can run where there is no Unix, as far as its own text says."""
    return _NEEDS.search(source) is None
