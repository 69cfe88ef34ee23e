"""What all tests share: one thread per process, no usage reports, a cache of their own, and the mark of their tier."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Ray's workers are nice (15): beside the other test processes they would hardly run until those have ended.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest

from tests.portability import is_portable

UNIT_FOLDER = Path(__file__).parent / "unit"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data and the key that marks a user's own sweeps go to folders of the test run."""
    os.environ["QLORA_RAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the seed by which one schedule of tests/simulation is run again."""
    parser.addoption("--simulation-seed", type=int, default=None, help="Run only the schedule of this seed.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tier of `make test`, and those of its tests that need no Unix."""
    portable: dict[Path, bool] = {}
    for item in items:
        is_quick = item.get_closest_marker("slow") is None and item.get_closest_marker("gpu") is None
        if is_quick and item.path.is_relative_to(UNIT_FOLDER):
            item.add_marker(pytest.mark.unit)
            if item.path not in portable:
                portable[item.path] = is_portable(item.path.read_text(encoding="utf-8"))
            if portable[item.path]:
                item.add_marker(pytest.mark.portable)
