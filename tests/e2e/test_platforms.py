"""The package without what Windows lacks: every module is imported, and the commands that start nothing run.

The libraries are imported first, since they know by the name of the system what they may import.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import qlora_ray

PRELUDE = """
import os, select, signal, subprocess, sys
import aiohttp, datasets, matplotlib.figure, numpy, optuna, peft, plotly.graph_objects, ray, ray.tune, safetensors.torch
import scipy.stats, torch, transformers, trl, yaml, filelock, psutil
assert not any(name.startswith("qlora_ray") for name in sys.modules)
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for module, names in {
    os: ("O_DIRECTORY", "O_NOFOLLOW", "fchmod", "getloadavg", "nice", "pread", "sysconf", "uname"),
    signal: ("SIGPIPE", "SIGHUP", "SIGKILL", "pthread_kill"),
    select: ("poll",),
}.items():
    for name in names:
        delattr(module, name)
# As there.
subprocess.Popen.kill = subprocess.Popen.terminate
"""
IMPORT_ALL = """
import importlib, json
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(len([name for name in sys.modules if name.startswith("qlora_ray")]))
"""
RUN_ALL = """
import importlib, json
for name, *arguments in json.loads(sys.argv[1]):
    assert importlib.import_module(f"qlora_ray.{name}").main(arguments) == 0
    print("END")
"""
COMMANDS = (
    (("sweep", "--print-config"), "die Läufe"),
    (("sweep", "--preview"), "SELECT"),
    (("plan", "--gpus", "T4:2"), "T4"),
)
# A script, which is run as such.
SCRIPTS = {"qlora_ray.__main__", "qlora_ray.dashboard.__main__", "qlora_ray.config.__main__"}


def run_without_unix(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QLORA_RAY_CACHE": str(folder / "a cache")}
    command = [sys.executable, "-c", PRELUDE + script, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_every_module_is_imported_without_the_modules_that_windows_lacks(tmp_path: Path) -> None:
    names = {module.name for module in pkgutil.walk_packages(qlora_ray.__path__, "qlora_ray.")} - SCRIPTS
    done = run_without_unix(IMPORT_ALL, json.dumps(sorted(names)), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= len(names) > 400


def test_what_starts_nothing_runs_in_a_folder_with_a_blank_and_a_letter_beyond_ascii(tmp_path: Path) -> None:
    folder = tmp_path / "mein Ordner é"
    folder.mkdir()
    commands = [[*command, "--set", "results.dir=die Läufe"] for command, _ in COMMANDS]
    done = run_without_unix(RUN_ALL, json.dumps(commands), folder=folder)
    assert done.returncode == 0, done.stderr
    *answers, rest = done.stdout.split("END\n")
    assert rest == ""
    for answer, (_, told) in zip(answers, COMMANDS, strict=True):
        assert told in answer
