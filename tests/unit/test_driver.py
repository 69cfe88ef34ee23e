"""What a sweep does in which order and how it ends, with Ray, executors and the search's loop in the form of fakes."""

from __future__ import annotations

import errno
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from qlora_ray.errors import (
    ExecutorsLost,
    ModelError,
    NoExecutors,
    PlacementError,
    QloraRayError,
    RunError,
    SweepInterrupted,
)
from qlora_ray.orchestration import driver
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.control import ControlAction, take_requests, write_request
from qlora_ray.training.engine import Failure
from tests.unit.driver_fixtures import HEAD, World, complete_all, raising
from tests.unit.hardware_fixtures import cpu_node, gpu, node, plan
from tests.unit.orchestration_fixtures import ask, make_result, remote

WORKER = "b" * 56
DIVERGED = Failure("diverged", "loss is nan at step 3")
BROKEN_BASE = "model.name: no-such-base cannot be loaded: it is not there."


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine without GPU whose three trials are all complete and whose winner is better."""
    return World(tmp_path, monkeypatch)


def test_a_sweep_does_all_in_order_and_ends_with_its_winner(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    usage = {"first_step_at": 1.0, "training_s": 3.0, "idle_s": 1.0}

    def die() -> None:
        raise RayActorError

    world.pool.executors = [(SimpleNamespace(usage=remote(each)), {}) for each in (lambda: usage, die)]
    summary = world.run()
    assert world.done == [
        "join Ray",
        "probe nodes",
        "start executors",
        "wait_ready",
        "search",
        "begin_scoring",
        "choose winner",
        "write report",
        "close",
        "kill pool",
        "leave Ray",
    ]
    assert (summary.status, summary.winner, summary.verdict) == ("complete", "0000", "better")
    # 1 s of 4 s; an executor that has died is left out.
    assert summary.device_wait_share == 0.25
    written = read_json(world.paths.summary)
    assert (written["status"], written["counts"]) == ("complete", {"complete": 3})
    assert world.events()[0] == "sweep_started" and world.events()[-1] == "sweep_ended"
    assert "verdict   the winner is better" in capfd.readouterr().out


def test_the_base_is_fetched_on_the_nodes_of_executors_before_these_are_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The head trains nothing beside a GPU.
    world.nodes = {HEAD: cpu_node("head"), WORKER: node("10.0.0.5", gpu("Tesla T4"))}
    monkeypatch.setattr(driver, "fetch_on_nodes", lambda model, nodes, **_: world.done.append(f"fetch on {nodes}"))
    world.run()
    fetched = [(at, done) for at, done in enumerate(world.done) if done.startswith("fetch")]
    placed = sorted({spec.node_id for spec in world.specs})
    assert fetched == [(world.done.index("start executors") - 1, f"fetch on {placed}")]


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("http://127.0.0.1:8265", "ray   http://127.0.0.1:8265, Ray's dashboard; it asks for the token"),
        (None, "note  cluster.ray_dashboard is without effect"),
    ],
)
def test_the_link_of_rays_dashboard_is_printed_where_the_config_asks_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], link: str | None, words: str
) -> None:
    monkeypatch.setattr(driver, "find_dashboard_link", lambda: link)
    world.run()
    assert words not in capfd.readouterr().out
    cluster = world.preflight.config.cluster.model_copy(update={"ray_dashboard": True})
    world.preflight = replace(world.preflight, config=world.preflight.config.model_copy(update={"cluster": cluster}))
    world.paths = SweepPaths(world.paths.root.with_name("other"))
    world.run()
    assert words in capfd.readouterr().out


def test_executors_are_started_on_the_node_of_their_device(world: World) -> None:
    world.nodes = {HEAD: cpu_node("head"), WORKER: node("10.0.0.5", gpu("Tesla T4"), gpu("Tesla T4", index=1))}
    world.run()
    placed = sorted((spec.placement.device_kind, spec.node_id) for spec in world.specs)
    planned = plan(*world.nodes.values())
    nodes_of = {"cuda": WORKER, "cpu": HEAD}
    assert placed == sorted(
        (one.device_kind, nodes_of[one.device_kind])
        for one in planned.placements
        for _ in range(one.num_devices * one.executors_per_device)
    )
    assert placed.count(("cuda", WORKER)) >= 2
    # No bound but the config's own: nodes that join later bring slots that the plan does not have.
    assert world.max_slots is None


def test_the_best_trials_get_new_seeds_after_the_search_and_none_of_these_is_stopped_early(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.preflight.config
    search = config.search.model_copy(update={"final_seeds": 2})
    evaluate = config.evaluate.model_copy(update={"top_k": 1})
    world.preflight = replace(
        world.preflight, config=config.model_copy(update={"search": search, "evaluate": evaluate})
    )
    summary = world.run()
    assert world.done.count("search") == 2 and world.schedulers == ["asha", "none"]
    assert summary.counts == {"complete": 3 + 2}
    seeds = [read_json(world.paths.trial(f"{number:04d}").record)["seed_of"] for number in range(5)]
    assert seeds == [None, None, None, "0000", "0000"]
    assert world.events().count("final_seeds_planned") == 1
    # Nothing is left for a resume.
    monkeypatch.setattr(driver, "check_same_inputs", lambda preflight, first, *, common: [])
    del world.done[:]
    assert world.run(is_resume=True).counts == summary.counts and "search" not in world.done


def test_a_sweep_that_is_to_finish_begins_no_trials_with_new_seeds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.preflight.config
    search = config.search.model_copy(update={"final_seeds": 2})
    world.preflight = replace(world.preflight, config=config.model_copy(update={"search": search}))

    def run_trials(terms: Any, *, ledger: Any, control: Any, **inputs: Any) -> None:
        ledger.is_finishing = True
        world._run_trials(terms, ledger=ledger, control=control, **inputs)

    monkeypatch.setattr("qlora_ray.orchestration.searching.run_trials", run_trials)
    assert world.run().counts == {"complete": 3}
    assert world.done.count("search") == 1


def test_what_is_asked_while_the_sweep_starts_is_there_for_its_search_and_what_was_asked_before_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    write_request(world.paths, ControlAction.FINISH)
    found: list[ControlAction | None] = []

    def check(preflight: Any, first: Any, *, common: Any) -> list[str]:
        write_request(world.paths, ControlAction.PAUSE)
        return []

    def search(searcher: Any, stop: Any) -> None:
        found.extend(request.action for request in take_requests(world.paths))
        complete_all(searcher, stop)

    monkeypatch.setattr(driver, "check_same_inputs", check)
    world.search = search
    more = world.preflight.config.search.model_copy(update={"num_trials": 4})
    world.preflight = replace(world.preflight, config=world.preflight.config.model_copy(update={"search": more}))
    world.run(is_resume=True)
    assert found == [ControlAction.PAUSE]


def test_a_sweep_whose_trials_all_fail_has_no_winner_and_names_the_first_cause(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.search = lambda searcher, stop: complete_all(searcher, stop, metrics={}, failure=DIVERGED)
    world.winner = lambda ledger, **_: None
    summary = world.run()
    assert (summary.status, summary.verdict) == ("no_winner", None)
    assert summary.first_failure == "trial 0000: loss is nan at step 3"
    assert read_json(world.paths.summary)["counts"] == {"failed": 3}
    assert "First cause: trial 0000: loss is nan" in capfd.readouterr().out


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_second", [False, True])
def test_a_sweep_stopped_in_its_search_chooses_no_winner_and_can_go_on(
    world: World, signum: signal.Signals, is_second: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    def be_stopped(searcher: Any, stop: Any) -> None:
        searcher.enter_report(make_result(ask(searcher).number, 1))
        signal.raise_signal(signum)
        assert stop.is_requested
        if is_second:
            signal.raise_signal(signum)
            raise AssertionError("the second signal has stopped nothing")

    world.search = be_stopped
    summary = world.run()
    assert (summary.status, summary.counts) == ("interrupted", {"interrupted": 1})
    assert "choose winner" not in world.done and world.done[-4:] == ["write report", "close", "kill pool", "leave Ray"]
    assert read_json(world.paths.trial("0000").record)["state"] == "interrupted"
    assert f"--resume {world.paths.root}" in capfd.readouterr().out


def test_a_resumed_sweep_runs_what_is_missing_and_keeps_how_it_began(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world.search = lambda searcher, stop: (ask(searcher), signal.raise_signal(signal.SIGINT))
    assert world.run().status == "interrupted"
    monkeypatch.setattr(driver, "check_same_inputs", lambda preflight, first, *, common: ["the base is a branch"])
    world.search, world.folder = complete_all, "second"
    summary = world.run(is_resume=True)
    assert (summary.status, summary.counts) == ("complete", {"complete": 3, "interrupted": 1})
    assert read_json(world.paths.trial("0001").record)["resumed_from"] == "0000"
    assert world.events().count("sweep_started") == world.events().count("sweep_resumed") == 1
    manifest = read_json(world.paths.manifest)
    assert (manifest["folder"], [run["folder"] for run in manifest["resumes"]]) == ("first", ["second"])
    assert "note  the base is a branch" in capfd.readouterr().out

    del world.done[:]
    assert world.run(is_resume=True).counts == summary.counts
    # Nothing is left to train, and the winner is chosen all the same.
    assert "search" not in world.done and "choose winner" in world.done


def test_a_resume_with_other_inputs_is_refused_and_the_folder_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    monkeypatch.setattr(driver, "check_same_inputs", raising(RunError("--resume: the data must be the same.")))
    # It would push what the first run could not.
    monkeypatch.setattr(driver, "hub_pusher", raising(AssertionError("the hub was asked")))
    before = {path: path.read_bytes() for path in world.paths.root.rglob("*.json")}
    with pytest.raises(RunError, match="--resume: the data must be the same"):
        world.run(is_resume=True)
    assert {path: path.read_bytes() for path in world.paths.root.rglob("*.json")} == before


def test_a_sweep_stopped_while_it_scores_is_interrupted_and_keeps_its_trials(world: World) -> None:
    world.winner = lambda ledger, **_: signal.raise_signal(signal.SIGINT)
    summary = world.run()
    assert (summary.status, summary.winner) == ("interrupted", None)
    assert summary.counts == {"complete": 3}


@pytest.mark.parametrize("moment", ["plan_nodes", "start_sweep_pool", "open_sweep_study"])
def test_a_sweep_stopped_before_its_first_trial_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(driver, moment, lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        world.run()
    assert not world.paths.root.parent.exists()


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("plan_nodes", RunError("results.dir: it cannot be written.")),
        ("plan_nodes", PlacementError("placement: one trial needs 21 GiB.")),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str, error: QloraRayError
) -> None:
    monkeypatch.setattr(driver, where, raising(error))
    with pytest.raises(type(error), match=str(error)):
        world.run()
    assert not world.paths.root.parent.exists()


def test_a_base_that_no_executor_can_load_is_one_line_and_leaves_nothing(world: World) -> None:
    world.pool.wait_ready = remote(raising(RayTaskError("wait_ready", "remote traceback", NoExecutors(BROKEN_BASE))))
    with pytest.raises(ModelError, match=r"^model\.name: no-such-base cannot be loaded: it is not there\.$"):
        world.run()
    assert "search" not in world.done
    assert not world.paths.root.parent.exists()


def test_the_loss_of_every_executor_keeps_the_folder_for_a_resume(world: World) -> None:
    def lose(searcher: Any, stop: Any) -> None:
        ask(searcher)

    world.search = lose
    world.winner = raising(ExecutorsLost("no executor is left"))
    with pytest.raises(ExecutorsLost, match=r"^no executor is left$"):
        world.run()
    assert world.events()[-1] == "sweep_ended"
    assert read_json(world.paths.trial("0000").record)["state"] == "interrupted"
    # What resumes it reads the same of every end that is not the sweep's own.
    assert read_json(world.paths.summary)["status"] == "interrupted"


@pytest.mark.parametrize("moment", ["write_record", "run_search", "write_summary"])
def test_a_full_disk_interrupts_in_one_line_and_leaves_nothing_of_what_had_not_begun(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "here/file")
    monkeypatch.setattr(driver, moment, raising(error))
    is_begun = moment != "write_record"
    with pytest.raises(SweepInterrupted if is_begun else RunError, match=r"^here/file: .*[Ff]ree some") as caught:
        world.run()
    assert len(str(caught.value).splitlines()) == 1
    assert (world.paths.resume_command in str(caught.value)) is is_begun
    assert world.paths.root.exists() is is_begun
    if is_begun:
        assert "Traceback" in (world.paths.logs / "driver.log").read_text()


def test_a_pool_that_dies_after_the_search_interrupts_the_sweep_and_the_resume_is_told(world: World) -> None:
    world.pool.ready_executors = remote(raising(RayActorError()))
    with pytest.raises(SweepInterrupted, match=r"the pool is gone: .* --resume"):
        world.run()
    summary = read_json(world.paths.summary)
    assert (summary["status"], summary["counts"]["complete"]) == ("interrupted", 3)
    assert world.events()[-2:] == ["pool_lost", "sweep_ended"]


def test_a_pool_that_dies_when_all_is_written_takes_nothing_from_the_sweep(world: World) -> None:
    world.pool.close = remote(raising(RayActorError()))
    assert world.run().status == "complete"


def test_a_report_that_cannot_be_made_takes_nothing_from_the_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qlora_ray.reporting.write_report", raising(ValueError("no such figure")))
    assert world.run().status == "complete"
    assert "report    could not be made" in capfd.readouterr().out
    assert "no such figure" in (world.paths.logs / "driver.log").read_text()
