"""Settings every test shares: one thread per process, no usage reports, a cache of its own."""

from __future__ import annotations

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Ray's workers are nice (15): beside the other test processes they would hardly run until those have ended.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data goes to a folder of the test run, not to the user's cache."""
    os.environ["QLORA_RAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
