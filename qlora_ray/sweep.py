"""Finds the best QLoRA adapter for a base and a dataset, on whatever devices there are.

`python -m qlora_ray.sweep` runs configs/quickstart.yaml: an embedded base and task, no download, no GPU needed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from qlora_ray.commands import (
    CommandParser,
    Result,
    add_config_options,
    add_json_option,
    as_place,
    end_with,
    find_config,
    run_command,
    sigterm_as_stop,
)
from qlora_ray.errors import ConfigError, RunError

if TYPE_CHECKING:
    from qlora_ray.config import SweepConfig
    from qlora_ray.orchestration.cluster.starting import RayStart
    from qlora_ray.orchestration.live.watch import LiveWatch
    from qlora_ray.orchestration.live_page import LivePage
    from qlora_ray.preflight.checks import Preflight
    from qlora_ray.runs import SweepPaths
    from qlora_ray.runs.records import Summary
    from qlora_ray.search.space import SearchSpace

# How long the end of the process waits for a Ray that nothing ran in.
RAY_END_S = 1.0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="python -m qlora_ray.sweep", description=__doc__.splitlines()[0])
    add_config_options(parser)
    parser.add_argument("--resume", type=as_place, metavar="DIR", help="go on with an interrupted or finished sweep")
    parser.add_argument(
        "--add-trials", type=_as_count, metavar="N", help="with --resume: N trials more than the sweep had"
    )
    parser.add_argument(
        "--trust-folder",
        action="store_true",
        help="with --resume: follow the folder's manifest where it lets code run or names a cluster, as your own",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--plan", action="store_true", help="print what it would run, and where, as `plan`, and stop")
    parser.add_argument("--preview", action="store_true", help="print one sample, trained tokens marked, and stop")
    parser.add_argument(
        "--require-improvement", action="store_true", help="exit with 1 unless the winner is better than its base"
    )
    parser.add_argument(
        "--export", type=as_place, metavar="DIR", help="write the winner's bundle there, as qlora_ray.export does"
    )
    parser.add_argument(
        "--dashboard",
        nargs="?",
        choices=("show", "control"),
        const="show",
        help="serve a live page of it on 127.0.0.1 while it runs, and print where; `control` gives it buttons",
    )
    add_json_option(parser)
    return parser


def main(argv: list[str] | None = None, *, ray_end_s: float | None = None) -> int:
    """Runs the command; returns 0: a winner, 1: none, 2: bad input or a failed export, 130 or 143: stopped.

    Args:
        argv: The command line; None: this process's own.
        ray_end_s: How long a Ray that is still starting, after a failed check or Ctrl-C, is waited for. None: to its
            end, since two in one process break each other. A process that ends anyway takes it along.
    """
    from qlora_ray.orchestration.cluster.starting import RayStart

    arguments = make_parser().parse_args(argv)
    ray_start = RayStart()
    try:
        return run_command(
            lambda: _run(arguments, ray_start), json_of="sweep" if arguments.json else None, has_own_signals=True
        )
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            ray_start.end(ray_end_s)


def _run(arguments: argparse.Namespace, ray_start: RayStart) -> Result:
    from qlora_ray.config import load_config
    from qlora_ray.runs import SweepPaths

    _check_arguments(arguments)
    if arguments.resume:
        paths = SweepPaths(arguments.resume)
        config, space = _read_resumed(arguments, paths)
    else:
        source = find_config(arguments)
        config = load_config(source, overrides=arguments.overrides, preset=arguments.preset)
    if arguments.print_config:
        sys.stdout.write(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
        return Result({"config": config.model_dump(mode="json")})
    if arguments.preview:
        preview = _preview(config)
        sys.stdout.write(f"{preview}\n")
        return Result({"preview": preview})

    if not arguments.resume:
        from qlora_ray.search.parsing import load_space

        space = load_space(config)
        if arguments.plan:
            from qlora_ray.orchestration.planned_sweep import tell_plan

            return Result(tell_plan(config, space))
        stem = arguments.preset if source is None else source.stem
        name = config.results.name or f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        paths = SweepPaths(Path(config.results.dir) / name)
        paths.check_unused()
    else:
        paths.check_resumable()
    if arguments.export is not None:
        from qlora_ray.exporting.delivery import check_place

        # What would stop the export is said before hours of training.
        check_place(arguments.export, sweep=paths.root, option="--export")
    if not arguments.dashboard:
        return _search(arguments, config, space, paths=paths, ray_start=ray_start)
    from qlora_ray.orchestration.live_page import live_page

    # It starts beside the checks, and is told of when these have passed.
    with live_page(paths.root, has_control=arguments.dashboard == "control") as page:
        return _search(arguments, config, space, paths=paths, ray_start=ray_start, page=page)


def _search(
    arguments: argparse.Namespace,
    config: SweepConfig,
    space: SearchSpace,
    *,
    paths: SweepPaths,
    ray_start: RayStart,
    page: LivePage | None = None,
) -> Result:
    """Checks the sweep and runs it; `page` is its live page."""
    # From here on it takes seconds to find something wrong, and as many to start Ray.
    ray_start.begin(config.cluster)
    from qlora_ray.console import Console
    from qlora_ray.orchestration.live.watch import LiveWatch

    with LiveWatch(Console()).running() as watch:
        watch.say("checking the config, the data and the base")
        preflight = _check(config, space, watch, is_resume=bool(arguments.resume))
    from qlora_ray.orchestration.driver import run_sweep
    from qlora_ray.runs.typed_json import to_json

    if page is not None:
        # A console, since a reader of stdout that is gone must not stop the sweep here.
        Console().line(page.describe())
    is_exported = arguments.export is not None
    summary = run_sweep(
        preflight, paths=paths, is_resume=bool(arguments.resume), is_exported=is_exported, ray_start=ray_start
    )
    is_refused = arguments.require_improvement and summary.status == "complete" and summary.verdict != "better"
    bundle = None
    if is_exported:
        bundle = _export(arguments.export, paths=paths, summary=summary, is_refused=is_refused)
    facts = {**to_json(summary), "folder": str(paths.root), "exported_to": None if bundle is None else str(bundle)}
    return Result(facts, exit_code=1 if is_refused else summary.exit_code)


def _check(config: SweepConfig, space: SearchSpace, watch: LiveWatch, *, is_resume: bool) -> Preflight:
    from qlora_ray.preflight.checks import check_sweep, plan_sweep

    preflight = check_sweep(config, space, is_resume=is_resume, tell=watch.say)
    if config.cluster.address is None and "RAY_ADDRESS" not in os.environ:
        # What does not fit here is said before anything is started.
        from qlora_ray.hardware import probe_node

        plan_sweep(preflight, [probe_node()])
    return preflight


def _check_arguments(arguments: argparse.Namespace) -> None:
    for name in ("add_trials", "trust_folder"):
        if getattr(arguments, name) and not arguments.resume:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option}: is of a sweep that goes on, got no --resume. Add --resume DIR.")
    if arguments.preset and arguments.resume:
        raise ConfigError("--preset: is of a new sweep, got --resume too, which has its config. Drop one of them.")
    if arguments.plan and arguments.resume:
        raise ConfigError("--plan: is of a new sweep, got --resume too, which plans what is left. Drop one of them.")
    only_shown = [option for option in ("print_config", "plan", "preview") if getattr(arguments, option)]
    asked = [option for option in ("export", "require_improvement", "dashboard") if getattr(arguments, option)]
    if only_shown and asked:
        option, shown = (f"--{name.replace('_', '-')}" for name in (asked[0], only_shown[0]))
        raise ConfigError(f"{option}: is of a whole sweep, got {shown}, which stops before it. Drop one of them.")


def _export(to: Path, *, paths: SweepPaths, summary: Summary, is_refused: bool) -> Path | None:
    """Exports the winner and returns the bundle's folder; None, and a line that says why, for nothing to export."""
    from qlora_ray.console import Console
    from qlora_ray.exporting.delivery import deliver_winner, export_command

    tell = Console().line
    tell()
    if summary.status != "complete":
        again = " Resume the sweep with --export too." if summary.status == "interrupted" else ""
        earlier = _find_earlier_winner(paths)
        why = "the sweep has no winner" if earlier is None else "this run chose no winner"
        tell(f"--export {to}: nothing was exported: {why}.{again}")
        if earlier is not None:
            tell(f"The winner of the run before, trial {earlier}, is exported by: {export_command(paths, to=to)}")
    elif is_refused:
        tell(
            f"--export {to}: nothing was exported: --require-improvement asks for a winner that is better than its "
            f"base, got {summary.verdict}. Export it all the same with: {export_command(paths, to=to)}"
        )
    else:
        with sigterm_as_stop():
            deliver_winner(paths, to=to, tell=tell)
        return to
    return None


def _find_earlier_winner(paths: SweepPaths) -> str | None:
    """The trial that an earlier run of a resumed sweep chose; None if there is none."""
    from qlora_ray.runs.winner import find_trial

    try:
        return find_trial(paths, None)[0]
    except RunError:
        return None


def _read_resumed(arguments: argparse.Namespace, paths: SweepPaths) -> tuple[SweepConfig, SearchSpace]:
    from qlora_ray.preflight.resuming import ResumeRequest, read_resumed
    from qlora_ray.runs.links import check_links
    from qlora_ray.runs.records import Manifest, read_record

    request = ResumeRequest(
        config=arguments.config,
        overrides=arguments.overrides,
        num_added_trials=arguments.add_trials,
        is_trusted=arguments.trust_folder,
    )
    if not request.is_trusted:
        check_links(paths.root)
    return read_resumed(paths, read_record(paths.manifest, Manifest), request)


def _as_count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text}")
    return int(text)


def _preview(config: SweepConfig) -> str:
    from qlora_ray.console import Console
    from qlora_ray.data import prepare_data, render_preview
    from qlora_ray.modeling.loading import load_tokenizer

    tokenizer, console = load_tokenizer(config.model), Console(sys.stderr)
    seed = config.training.data_seed
    prepared = prepare_data(config.data, tokenizer=tokenizer, data_seed=seed, heads=config.heads, tell=console.progress)
    console.end_progress()
    return render_preview(prepared, tokenizer)


if __name__ == "__main__":
    end_with(lambda: main(ray_end_s=RAY_END_S))
