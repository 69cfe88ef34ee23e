"""Adapters pushed while a sweep runs, to a hub on this machine: what goes where, once, and what is never told."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any, Literal

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load

from qlora_ray import export as export_command
from qlora_ray.config.outputs import Export
from qlora_ray.errors import QloraRayError
from qlora_ray.exporting.adapter_hub import describe_pushes
from qlora_ray.exporting.adapter_pushes import AdapterPushes
from qlora_ray.orchestration.hub_pushing import HubPusher, PushTerms
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs import SweepPaths, append_line, read_events, read_json
from qlora_ray.runs.artifacts import write_sweep_artifacts
from qlora_ray.runs.derived import end_sweep
from qlora_ray.runs.record_parts import BaseRecord, ExecutorRecord
from qlora_ray.runs.records import Manifest, Summary, TrialRecord, TrialStatus, write_record
from qlora_ray.training.checkpoint import TrialState
from tests.exporting_fixtures import snapshot
from tests.fake_hub import FakeHub, FakeRepository

REPO = "ann/price-20261130-1200"
AT_ONCE = PushTerms(interval_s=0.0, retry_s=0.0)
# Longer than any test: nothing is pushed by the clock.
NEVER_S = 3600.0


@pytest.fixture
def hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The hub that the environment names, with its token there."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    """A new sweep's folder, with a time in its name."""
    paths = SweepPaths(tmp_path / "price-20261130-1200")
    paths.create()
    return paths


def save_trial(paths: SweepPaths, number: int, loss: float, *, simulated: bool | None = None) -> TrialEntry:
    """A complete trial's record and adapter; returns its entry in the books."""
    entry = TrialEntry(number, {}, 0.0, state=TrialStatus.COMPLETE, metrics={"eval_loss": loss})
    trial = paths.trial(entry.id)
    trial.adapter.mkdir(parents=True)
    contents = {
        "adapter_config.json": json.dumps({"r": number}).encode(),
        "adapter_model.safetensors": os.urandom(1000),
        "qlora_ray.json": json.dumps({"trial": entry.id}).encode(),
    }
    for name, content in contents.items():
        (trial.adapter / name).write_bytes(content)
    executor = ExecutorRecord(simulated=simulated)
    if simulated:
        entry.facts["executor"] = {"simulated": True}
    metrics = {"eval_loss": loss}
    write_record(
        trial.record, TrialRecord(trial=entry.id, state=TrialStatus.COMPLETE, metrics=metrics, executor=executor)
    )
    return entry


def push_all(export: Export, paths: SweepPaths) -> list[str]:
    """What another run of the sweep would push."""
    pushes = AdapterPushes(export, paths)
    return list(iter(pushes.push_next, None))


def commits(hub: FakeHub) -> list[str]:
    return [path.rsplit("/", 1)[-1] for _, path, _ in hub.requests if "/commit/" in path]


def test_every_saved_adapter_has_a_branch_and_main_has_the_best(hub: FakeHub, paths: SweepPaths) -> None:
    pushes = AdapterPushes(Export(push_every="save"), paths)
    lines = []
    for number, loss, is_best in ((0, 0.5, True), (1, 0.7, False), (2, 0.3, True)):
        save_trial(paths, number, loss)
        pushes.add(f"{number:04d}", is_best=is_best)
        lines += list(iter(pushes.push_next, None))
    repository = hub.repositories[REPO]
    assert repository.private and hub.created == [
        {"name": "price-20261130-1200", "organization": "ann", "visibility": "private"}
    ]
    assert repository.files == snapshot(paths.trial("0002").adapter)
    for trial in ("0000", "0001", "0002"):
        assert repository.branches[f"trial-{trial}"] == snapshot(paths.trial(trial).adapter)
    assert len(commits(hub)) == len(lines) == len(repository.messages) == 5
    events = [event for event in read_events(paths.events) if event["event"] == "adapter_pushed"]
    assert [(event["trial"], event["branch"]) for event in events] == [
        *(("0000", "trial-0000"), ("0000", "main"), ("0001", "trial-0001"), ("0002", "trial-0002"), ("0002", "main"))
    ]
    assert {event["url"] for event in events if event["branch"] == "main"} == {f"{hub.endpoint}/{REPO}/tree/main"}


def write_state(paths: SweepPaths, number: int, step: int) -> dict[str, torch.Tensor]:
    """A running trial's record and state; returns its adapter by PEFT's names in a file."""
    trial = paths.trial(f"{number:04d}")
    trial.root.mkdir(exist_ok=True)
    write_record(trial.record, TrialRecord(trial=f"{number:04d}", base=BaseRecord(name="org/base", revision="abc")))
    lora = {"r": 2, "lora_alpha": 4.0, "lora_dropout": 0.0, "target_modules": ["q"], "bias": "none"}
    names = [f"base_model.model.q.lora_{letter}" for letter in "AB"]
    adapter = {f"{name}.default.weight": torch.rand(2, 2) for name in names}
    facts = {"lora": {**lora, "use_rslora": False, "use_dora": False}, "quantization": {"method": "nf4"}}
    TrialState(f"{number:04d}", step, 1, adapter, {}, {}, {}, facts=facts).save(trial.state)
    return {f"{name}.weight": adapter[f"{name}.default.weight"] for name in names}


def test_a_running_trials_branch_has_its_newest_state_and_in_the_end_its_adapter(
    hub: FakeHub, paths: SweepPaths
) -> None:
    pushes = AdapterPushes(Export(push_every="save"), paths)
    for step in (4, 8):
        tensors = write_state(paths, 0, step)
        pushes.add_report("0000", step // 4)
    assert len(list(iter(pushes.push_next, None))) == 1
    files = hub.repositories[REPO].branches["trial-0000"]
    pushed = load(files["adapter_model.safetensors"])
    assert pushed.keys() == tensors.keys() and all(torch.equal(pushed[name], tensors[name]) for name in tensors)
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"], config["r"]) == ("org/base", "abc", 2)
    origin = json.loads(files["qlora_ray.json"])
    assert (origin["trial"], origin["quantization"]) == ("0000", {"method": "nf4"})
    assert hub.repositories[REPO].files == {} and pushes.waiting == []
    (event,) = (one for one in read_events(paths.events) if one["event"] == "adapter_pushed")
    assert (event["branch"], event["step"]) == ("trial-0000", 8)

    # As an earlier trial's heads would be there.
    hub.repositories[REPO].branches["trial-0000"]["heads.safetensors"] = b"x"
    save_trial(paths, 0, 0.5)
    pushes.add("0000", is_best=False)
    assert len(list(iter(pushes.push_next, None))) == 1
    assert hub.repositories[REPO].branches["trial-0000"] == snapshot(paths.trial("0000").adapter)


def test_states_go_to_the_hub_only_where_each_save_is_asked_for_and_while_they_are_there(
    hub: FakeHub, paths: SweepPaths
) -> None:
    write_state(paths, 0, 4)
    asked: list[tuple[Literal["best", "trial", "save"], bool]] = [("best", False), ("trial", False), ("save", True)]
    for every, is_pushed in asked:
        pushes = AdapterPushes(Export(push_every=every), paths)
        pushes.add_report("0000", 1)
        assert (pushes.push_next() is not None) == is_pushed
    pushes.add_report("0000", 1)
    pushes.drop_report("0000")
    assert pushes.push_next() is None
    shutil.rmtree(paths.trial("0000").state)
    pushes.add_report("0000", 2)
    assert pushes.push_next() is None and len(commits(hub)) == 1


def test_best_has_no_branches_and_of_several_that_wait_the_newest_is_pushed(hub: FakeHub, paths: SweepPaths) -> None:
    pushes = AdapterPushes(Export(push_every="best", push_to="team/prices"), paths)
    for number in range(3):
        save_trial(paths, number, 0.5 - 0.1 * number)
        pushes.add(f"{number:04d}", is_best=True)
    assert len(list(iter(pushes.push_next, None))) == 1
    repository = hub.repositories["team/prices"]
    assert (repository.branches, repository.files) == ({}, snapshot(paths.trial("0002").adapter))


def test_the_winner_of_the_last_run_goes_to_main_also_where_the_summary_is_damaged(
    hub: FakeHub, paths: SweepPaths
) -> None:
    for number, loss in enumerate((0.5, 0.3)):
        save_trial(paths, number, loss)
    end_sweep(paths, Summary(winner="0000"))
    paths.summary.write_text("{")
    push_all(Export(push_every="best"), paths)
    assert hub.repositories[REPO].files == snapshot(paths.trial("0000").adapter)


def test_a_resume_pushes_what_was_not_and_nothing_twice(hub: FakeHub, paths: SweepPaths) -> None:
    export = Export(push_every="save")
    for number, loss in enumerate((0.5, 0.3, 0.4)):
        save_trial(paths, number, loss)
    hub.fail = lambda method, path: 500 if path.endswith("/commit/trial-0002") else None
    with pytest.raises(QloraRayError, match="did not take it"):
        push_all(export, paths)
    assert sorted(hub.repositories[REPO].branches) == ["trial-0000", "trial-0001", "trial-0002"]
    hub.fail = lambda method, path: None
    before = len(commits(hub))
    assert len(push_all(export, paths)) == 2
    assert sorted(commits(hub)[before:]) == ["main", "trial-0002"]
    assert hub.repositories[REPO].files == snapshot(paths.trial("0001").adapter)
    asked = len(hub.requests)
    assert push_all(export, paths) == [] and len(hub.requests) == asked
    again = AdapterPushes(export, paths)
    assert (again.repository, again.num_pushed) == (f"{hub.endpoint}/{REPO}", 3)


def test_a_commit_whose_event_was_lost_is_not_made_again(hub: FakeHub, paths: SweepPaths) -> None:
    save_trial(paths, 0, 0.5)
    push_all(Export(push_every="best"), paths)
    kept = [event for event in read_events(paths.events) if event["event"] != "adapter_pushed"]
    paths.events.write_text("".join(json.dumps(event) + "\n" for event in kept))
    push_all(Export(push_every="best"), paths)
    assert commits(hub) == ["main"]


def test_events_that_do_not_say_what_was_pushed_are_passed_over(paths: SweepPaths) -> None:
    for facts in (
        {},
        {"repository": 5},
        {"repository": "x"},
        {"repository": "x", "url": None, "branch": [], "trial": 0},
    ):
        append_line(paths.events, {"event": "adapter_pushed", **facts})
    append_line(paths.events, {"event": "push_repository_made"})
    append_line(paths.events, {"event": ["adapter_pushed"]})
    assert AdapterPushes(Export(push_every="best"), paths).repository is None


def test_trials_of_simulated_devices_stay_here(hub: FakeHub, paths: SweepPaths) -> None:
    entry = save_trial(paths, 0, 0.5, simulated=True)
    pusher = HubPusher(AdapterPushes(Export(push_every="save"), paths), paths, tell=print, terms=AT_ONCE)
    pusher.closed(entry, is_best=True)
    assert pusher.finish(is_stopped=False).num_pushed == 0
    assert push_all(Export(push_every="save"), paths) == [] and hub.requests == []


@pytest.mark.parametrize(
    ("there", "push_to", "role", "message"),
    [
        (FakeRepository(True, {"model.safetensors": b"x"}), None, "write", r"must be new, got .*model\.safetensors"),
        (FakeRepository(False), None, "write", "must be private"),
        (None, "bob", "write", r"export\.push_to: .*the token is of ann"),
        (None, None, "read", "a token that may write"),
    ],
)
def test_a_place_that_is_not_this_sweeps_is_left_alone(
    hub: FakeHub, paths: SweepPaths, there: FakeRepository | None, push_to: str | None, role: str, message: str
) -> None:
    hub.role = role
    if there is not None:
        hub.repositories[REPO] = there
    save_trial(paths, 0, 0.5)
    with pytest.raises(QloraRayError, match=message) as caught:
        push_all(Export(push_every="save", push_to=push_to), paths)
    assert "\n" not in str(caught.value) and commits(hub) == [] and hub.created == []


def test_without_a_token_one_line_says_what_is_missing(
    hub: FakeHub, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert describe_pushes(Export()) is None
    assert "export.push_every" in (describe_pushes(Export(push_to="team/prices")) or "")
    assert "of team, under prices" in (describe_pushes(Export(push_every="best", push_to="team/prices")) or "")
    monkeypatch.delenv("HF_TOKEN")
    words = describe_pushes(Export(push_every="save"))
    assert words is not None and "\n" not in words
    assert words.startswith("nothing is pushed") and "Set HF_TOKEN" in words
    assert hub.requests == []


def pusher_of(
    paths: SweepPaths, tell: Callable[[str], Any], *, terms: PushTerms = AT_ONCE, is_told: bool = False
) -> HubPusher:
    return HubPusher(AdapterPushes(Export(push_every="save"), paths), paths, tell=tell, terms=terms, is_told=is_told)


def test_the_thread_pushes_while_trials_end_and_what_is_left_at_the_end(hub: FakeHub, paths: SweepPaths) -> None:
    told: Queue[str] = Queue()
    # The first goes at once, and the next not before the sweep's end.
    pusher = pusher_of(paths, told.put, terms=PushTerms(interval_s=NEVER_S))
    pusher.closed(save_trial(paths, 0, 0.5), is_best=True)
    assert told.get(timeout=30).startswith("trial 0000  pushed to ")
    pusher.closed(save_trial(paths, 1, 0.7), is_best=False)
    assert len(commits(hub)) == 1
    record = pusher.finish(is_stopped=False)
    assert (record.num_pushed, record.waiting, record.command) == (2, (), None)
    assert record.repository == f"{hub.endpoint}/{REPO}"
    assert sorted(commits(hub)) == ["main", "trial-0000", "trial-0001"]


def test_a_hub_that_refuses_is_told_of_once_and_at_the_end_with_the_command_that_goes_on(
    hub: FakeHub, paths: SweepPaths, capfd: pytest.CaptureFixture[str]
) -> None:
    told: Queue[str] = Queue()
    tried: Queue[None] = Queue()

    def refuse(method: str, path: str) -> int | None:
        if path.endswith("/create"):
            tried.put(None)
            return 400
        return None

    hub.fail = refuse
    pusher = pusher_of(paths, told.put)
    for number in range(3):
        pusher.closed(save_trial(paths, number, 0.5), is_best=number == 0)
        tried.get(timeout=30)
    record = pusher.finish(is_stopped=False)
    assert record.waiting == ("0000", "0001", "0002") and record.num_pushed == 0
    assert told.qsize() == 1 and "cannot be made" in told.get()
    events = [event for event in read_events(paths.events) if event["event"] == "push_failed"]
    assert len(events) == 1 and events[0]["reason"] == record.reason
    everything = [str(record), paths.events.read_text(), *capfd.readouterr()]
    assert not [text for text in everything if hub.token in text]

    hub.fail = lambda method, path: None
    write_record(paths.manifest, Manifest(config={"export": {"push_every": "save"}}))
    write_sweep_artifacts(paths.root)
    words = shlex.split(record.command or "")
    assert words[:3] == ["python", "-m", "qlora_ray.export"]
    assert export_command.main(words[3:]) == 0
    assert sorted(hub.repositories[REPO].branches) == ["trial-0000", "trial-0001", "trial-0002"]
    assert export_command.main([*words[3:], "--zip"]) == 2
    files = {file["path"]: file["bytes"] for file in read_json(paths.artifacts)["files"]}
    assert files["events.jsonl"] == paths.events.stat().st_size


def test_nothing_begins_to_be_pushed_when_the_sweep_has_told_what_waits(hub: FakeHub, paths: SweepPaths) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if "/preupload/" in path:
            begun.set()
            assert goes_on.wait(timeout=30)

    hub.fail = hold
    pusher = pusher_of(paths, print, terms=PushTerms(interval_s=0.0, end_s=0.0))
    pusher.closed(save_trial(paths, 0, 0.5), is_best=False)
    assert begun.wait(timeout=30)
    pusher.closed(save_trial(paths, 1, 0.7), is_best=False)
    assert pusher.finish(is_stopped=False).waiting == ("0000", "0001")
    goes_on.set()
    assert pusher._has_ended.wait(timeout=30)
    assert commits(hub) == ["trial-0000"]


def hang_at_upload(hub: FakeHub) -> threading.Event:
    """Has the hub never answer an upload; set once one has come."""
    hangs = threading.Event()

    def hang(method: str, path: str) -> str | None:
        if "/preupload/" in path:
            hangs.set()
            return "hang"
        return None

    hub.fail = hang
    return hangs


def test_ctrl_c_ends_the_wait_for_the_hub_and_the_end_says_what_waits(
    hub: FakeHub, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, told = hang_at_upload(hub), []
    pusher = pusher_of(paths, told.append)
    pusher.closed(save_trial(paths, 0, 0.5), is_best=True)
    assert hangs.wait(timeout=30)

    def interrupted(limit_s: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(pusher._has_ended, "wait", interrupted)
    record = pusher.finish(is_stopped=False)
    assert record.waiting == ("0000",) and record.command
    assert record.reason is not None and "stopped" in record.reason


def test_a_hub_that_hangs_holds_nobody_up(hub: FakeHub, paths: SweepPaths) -> None:
    hangs, told = hang_at_upload(hub), []
    pusher = pusher_of(paths, told.append, terms=PushTerms(end_s=0.0))
    pusher.closed(save_trial(paths, 0, 0.5), is_best=True)
    assert hangs.wait(timeout=30)
    # Returns though the upload never does.
    record = pusher.finish(is_stopped=False)
    assert record.waiting == ("0000",) and record.reason is not None and "within 0 s" in record.reason
    assert told == []


def test_what_the_plan_has_said_is_not_said_again(
    hub: FakeHub, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    told: list[str] = []
    pusher = pusher_of(paths, told.append, is_told=True)
    pusher.closed(save_trial(paths, 0, 0.5), is_best=True)
    record = pusher.finish(is_stopped=False)
    assert told == [] and hub.requests == []
    assert record.waiting == ("0000",) and "Set HF_TOKEN" in (record.reason or "")


def test_a_sweep_that_pushes_nothing_has_nothing_to_push_later(
    paths: SweepPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(paths.manifest, Manifest(config={"model": {}}))
    assert export_command.main([str(paths.root), "--push-adapters"]) == 2
    assert "export.push_every best, trial or save, got never" in capsys.readouterr().err
