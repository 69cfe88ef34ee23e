"""Messages that are lost between the processes of a sweep, by Ray's own injection of faults, change nothing."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak_books import check_folder, compare_with_undisturbed, read_outcome
from qlora_ray.runs import SweepPaths
from tests.e2e.sweeps import run_sweep, write_config

# A minute each where nothing else runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Calls of actors. Ray 2.60 draws by chance, with a seed of its own; the least numbers are certain, and come first.
CALLS = "CoreWorkerService.grpc_client.PushTask"
LOST_CALLS = {CALLS: {"num_failures": 8, "num_lower_bound_req_failures": 2, "req_failure_prob": 10}}
LOST_ANSWERS = {CALLS: {"num_failures": 8, "num_lower_bound_resp_failures": 2, "resp_failure_prob": 10}}
# The caller is told of the failure while the call is carried out.
IN_FLIGHT = {CALLS: {"num_failures": 8, "num_lower_bound_in_flight_failures": 2, "in_flight_failure_prob": 10}}
# Also what Ray's own processes ask of each other.
ALL = {"*": {"num_failures": 60, "req_failure_prob": 4, "resp_failure_prob": 4, "in_flight_failure_prob": 2}}
INJECTED = re.compile(r"Inject RPC [\w ]+ for (\S+)")


@pytest.fixture
def ray_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the Ray of a sweep keeps its logs. The path of a socket may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="qr", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """The sweep that others are disturbed versions of."""
    return run_small_sweep(tmp_path_factory.mktemp("undisturbed"))


def run_small_sweep(folder: Path) -> SweepPaths:
    """Runs a sweep to its end."""
    config = write_config(folder, search={"sampler": "random"}, evaluate={"metrics": []}, cluster={"max_slots": 2})
    run = run_sweep("--config", config, "--set", "results.name=s", cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return SweepPaths(folder / "results" / "s")


@pytest.mark.parametrize(
    "spec", [LOST_CALLS, LOST_ANSWERS, IN_FLIGHT, ALL], ids=["calls", "answers", "in flight", "all"]
)
def test_messages_that_are_lost_change_no_trial_and_no_winner(
    spec: dict[str, dict[str, int]],
    undisturbed: SweepPaths,
    ray_logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_testing_rpc_failure", json.dumps(spec))
    paths = run_small_sweep(tmp_path)
    injected = {name for log in ray_logs.rglob("*.log") for name in INJECTED.findall(log.read_text(errors="replace"))}
    assert injected if spec is ALL else injected == {CALLS}
    losses = compare_with_undisturbed(read_outcome(paths), read_outcome(undisturbed))
    losses.add(check_folder(paths))
    assert losses.is_empty, losses
