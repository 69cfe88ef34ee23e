"""What the sweep command does with its winner: exports it, or says why not. No sweep runs here."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal

import pytest

from qlora_ray import hardware, plan, sweep
from qlora_ray.errors import RunError
from qlora_ray.exporting import delivery
from qlora_ray.orchestration import driver
from qlora_ray.preflight import checks as preflight
from qlora_ray.runs.records import Summary, SweepStatus
from tests.exporting_fixtures import write_sweep
from tests.unit.test_commands_listed import keys_in_page


@pytest.fixture(autouse=True)
def rays(monkeypatch):
    """No Ray starts here: what was done with those that would have, in order."""
    done = []

    @contextlib.contextmanager
    def pretend(cluster):
        done.append("up")
        yield
        done.append("down")

    monkeypatch.setattr("qlora_ray.orchestration.cluster.joining.ray_cluster", pretend)
    return done


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """Makes the sweep end as told at once; what was exported, and whether a sweep ran, is kept in lists."""
    root = write_sweep(tmp_path / "s")
    exported, ran = [], []

    def end(status="complete", verdict="better", *, is_earlier=False):
        if status != "complete" and not is_earlier:
            shutil.rmtree(root / "best")
        winner = "0001" if status == "complete" else None
        summary = Summary(status=SweepStatus(status), winner=winner, verdict=verdict if winner else None)
        monkeypatch.setattr(preflight, "check_sweep", lambda config, space, *, is_resume, tell: None)
        monkeypatch.setattr(preflight, "plan_sweep", lambda checked, nodes: None)
        monkeypatch.setattr(driver, "run_sweep", lambda *args, **settings: ran.append(settings) or summary)
        monkeypatch.setattr(delivery, "deliver_winner", lambda paths, *, to, tell: exported.append((paths.root, to)))
        return root

    end.exported, end.ran = exported, ran
    return end


def run(root, *options):
    return sweep.main(["--resume", str(root), *map(str, options)])


def test_a_ray_that_was_begun_has_ended_when_the_command_returns(ended, rays, capfd):
    assert run(ended()) == 0
    assert rays == ["up", "down"]


def test_as_json_a_sweep_ends_with_its_summary_and_where_it_is(ended, tmp_path, capfd):
    root = ended()
    assert run(root, "--export", tmp_path / "bundle", "--json") == 0
    answer = json.loads(capfd.readouterr().out)
    result = answer["result"]
    assert (answer["exit_code"], result["status"], result["winner"]) == (0, "complete", "0001")
    assert (result["folder"], result["exported_to"]) == (str(root), str(tmp_path / "bundle"))
    assert set(result) - {"schema_version"} <= keys_in_page("sweep")


def test_a_check_that_fails_leaves_no_ray(ended, rays, monkeypatch, capfd):
    def fail(config, space, *, is_resume, tell):
        raise RunError("data: no such file")

    root = ended()
    monkeypatch.setattr(preflight, "check_sweep", fail)
    assert run(root) == 2
    assert rays == ["up", "down"]


@pytest.mark.parametrize(
    ("status", "verdict", "options", "code", "is_exported", "words"),
    [
        ("complete", "better", [], 0, True, ""),
        ("complete", "better", ["--require-improvement"], 0, True, ""),
        ("complete", "worse", [], 0, True, ""),
        ("complete", "worse", ["--require-improvement"], 1, False, "asks for a winner that is better than its base"),
        ("complete", "no different", ["--require-improvement"], 1, False, "got no different. Export it all the same"),
        ("no_winner", None, [], 1, False, "nothing was exported: the sweep has no winner."),
        ("no_winner", None, ["--require-improvement"], 1, False, "nothing was exported: the sweep has no winner."),
        ("interrupted", None, [], 130, False, "has no winner. Resume the sweep with --export too."),
    ],
)
def test_what_is_exported_is_what_the_sweep_ended_with(
    ended, tmp_path, capfd, status, verdict, options, code, is_exported, words
):
    root = ended(status, verdict)
    assert run(root, "--export", tmp_path / "out", *options) == code
    assert ended.exported == ([(root, tmp_path / "out")] if is_exported else [])
    out = capfd.readouterr().out
    assert words in out and ("nothing was exported" in out) is not is_exported


@pytest.mark.parametrize(
    ("status", "code", "advice"), [("interrupted", 130, " Resume the sweep with --export too."), ("no_winner", 1, "")]
)
def test_a_resumed_sweep_that_chose_no_winner_still_has_the_one_of_before(ended, tmp_path, capfd, status, code, advice):
    root = ended(status, None, is_earlier=True)
    assert run(root, "--export", tmp_path / "out") == code
    out = capfd.readouterr().out
    assert f"nothing was exported: this run chose no winner.{advice}\n" in out
    words = out.partition("The winner of the run before, trial 0001, is exported by: ")[2]
    assert shlex.split(words) == ["python", "-m", "qlora_ray.export", str(root), "--to", str(tmp_path / "out")]


@pytest.mark.parametrize("shown", ["--print-config", "--plan", "--preview"])
@pytest.mark.parametrize("asked", ["--export=out", "--require-improvement", "--dashboard"])
def test_what_is_of_a_whole_sweep_is_refused_where_none_is_run(ended, capfd, shown, asked):
    ended()
    assert sweep.main([shown, asked]) == 2
    option = asked.partition("=")[0]
    out, err = capfd.readouterr()
    assert err == f"{option}: is of a whole sweep, got {shown}, which stops before it. Drop one of them.\n"
    assert out == "" and ended.ran == []


def test_a_plan_shown_by_sweep_is_the_one_of_plan_and_nothing_starts(rays, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("QLORA_RAY_CACHE", str(tmp_path / "cache"))
    # Its free memory changes from one look to the next.
    node = hardware.probe_node()
    monkeypatch.setattr(hardware, "probe_node", lambda: node)
    options = ["--preset", "qwen3", "--set", "search.num_trials=3", "--json"]
    for here in ("model.name=embedded", "data.train=embedded", "data.max_train_rows=32", "evaluate.metrics=auto"):
        options += ["--set", here]
    answers = []
    for main, more in ((plan.main, []), (sweep.main, ["--plan"])):
        assert main([*options, *more]) == 0
        answers.append(json.loads(capfd.readouterr().out)["result"])
    assert answers[0] == answers[1]
    assert answers[1]["forecast"]["num_trials"] == 3 and answers[1]["total_slots"] >= 1
    assert rays == []


def test_the_plan_of_a_base_that_cannot_be_fetched_is_one_line(rays, capfd):
    assert sweep.main(["--preset", "price", "--plan"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("model.name: meta-llama/Llama-3.2-3B ") and err.count("\n") == 1
    assert rays == []


def test_what_is_left_of_a_sweep_is_not_planned_ahead(ended, capfd):
    assert run(ended(), "--plan") == 2
    assert capfd.readouterr().err.startswith("--plan: is of a new sweep, got --resume")


def test_a_sweep_is_resumed_from_inside_it_by_its_own_name(ended, monkeypatch):
    monkeypatch.chdir(ended())
    assert sweep.main(["--resume", "."]) == 0
    assert [settings["paths"].name for settings in ended.ran] == ["s"]


def test_without_export_nothing_is_said_of_it(ended, capfd):
    assert run(ended(), "--require-improvement") == 0
    assert ended.exported == [] and capfd.readouterr().out == ""


def test_a_place_that_no_bundle_can_have_is_refused_before_the_sweep(ended, tmp_path, capfd):
    root = ended()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    assert run(root, "--export", tmp_path / "out") == 2
    assert "must be a new folder or an earlier bundle, got one with mine.txt" in capfd.readouterr().err
    assert run(root, "--export", root / "best") == 2
    assert f"--export {root / 'best'}: must not be the sweep's own folder" in capfd.readouterr().err
    assert ended.ran == []


def test_a_new_sweeps_own_folder_is_refused_before_it_is_made(ended, tmp_path, monkeypatch, capfd):
    ended()
    config = tmp_path / "c.yaml"
    config.write_text("search: {space: {training.learning_rate: {low: 1.0e-4, high: 1.0e-3}}}\n")
    options = ["--config", str(config), "--set", f"results.dir={tmp_path / 'results'}", "--set", "results.name=new"]
    assert sweep.main([*options, "--export", str(tmp_path / "results" / "new")]) == 2
    assert "must not be the sweep's own folder" in capfd.readouterr().err
    assert ended.ran == [] and not (tmp_path / "results").exists()


def test_an_export_that_fails_after_a_sweep_has_the_exit_code_of_its_error(ended, tmp_path, monkeypatch, capfd):
    def fail(paths, *, to, tell):
        raise RunError("--to out: cannot be written: No space left on device. The sweep is whole; go on with: ...")

    root = ended()
    monkeypatch.setattr(delivery, "deliver_winner", fail)
    assert run(root, "--export", tmp_path / "out") == 2
    assert capfd.readouterr().err.startswith("--to out: cannot be written")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_export_can_be_stopped(ended, tmp_path, monkeypatch, signum, code):
    def stop(paths, *, to, tell):
        signal.raise_signal(signum)
        raise AssertionError("the signal has stopped nothing")

    root = ended()
    monkeypatch.setattr(delivery, "deliver_winner", stop)
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    first = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        before = signal.getsignal(signum)
        assert run(root, "--export", tmp_path / "out") == code
        assert signal.getsignal(signum) is before
    finally:
        signal.signal(signal.SIGINT, first)
