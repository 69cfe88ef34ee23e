"""Patterns of an adapter's config, tried before PEFT matches modules by them: a few letters can take for ever.

Python's `re` goes back over what it has matched, in a time that can double with each letter, and nothing in the same
process stops it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_ray.errors import ModelError

# Ours: patterns that adapters come with take milliseconds for all modules of a base.
LIMIT_S = 10.0
# Python with nothing but `re`; it names a pattern that is none.
_PROGRAM = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        print(json.dumps(f"{error} in {pattern}"))
        break
    for name in names:
        compiled.match(name), compiled.fullmatch(name)
"""


def check_patterns(config: Mapping[str, Any], names: Sequence[str], *, where: str) -> None:
    """Tries an adapter's patterns on the modules of a base, in a process that is ended after LIMIT_S.

    Args:
        config: PEFT's adapter_config.json.
        names: Of the base's modules, as PEFT matches them.
        where: The adapter, for messages.

    Raises:
        ModelError: If one is no pattern, or they take longer.
    """
    patterns = list(_list_patterns(config))
    if not patterns:
        return
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM],
            input=json.dumps([patterns, list(names)]),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{where}: the patterns of adapter_config.json must be matched with the base's modules within "
            f"{LIMIT_S:.0f} s, got none that were. Name the modules of target_modules in a list."
        ) from None
    if tried.stdout or tried.returncode:
        said = json.loads(tried.stdout) if tried.stdout else "the process that tries them died"
        raise ModelError(f"{where}: adapter_config.json must have patterns that are some, got {said}. Correct it.")


def _list_patterns(config: Mapping[str, Any]) -> Iterator[str]:
    """What PEFT 0.21 gives to `re`, as it does (tuners_utils.check_target_module_exists, utils.other.get_pattern_key);
    without names, in which a dot is all that means anything."""
    kinds = (
        ("target_modules", "{}", str),
        ("exclude_modules", "{}", str),
        ("modules_to_save", r"(^|.*\.){}($|\..*)", list),
        ("layers_pattern", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.", (str, list)),
        ("rank_pattern", r"(.*\.)?({})$", dict),
        ("alpha_pattern", r"(.*\.)?({})$", dict),
    )
    for key, form, kind in kinds:
        value = config.get(key)
        if not isinstance(value, kind):
            continue
        for pattern in [value] if isinstance(value, str) else value:
            if isinstance(pattern, str) and not re.fullmatch(r"[\w.-]*", pattern):
                yield form.replace("{}", pattern)
