"""Writes one trial of a sweep as a bundle: adapter, merged model, records, model card; zips it, pushes it to the hub.

`python -m qlora_ray.export results/X --to DIR` exports the winner. Given a bundle in place of a sweep, it zips or
pushes that one as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.doors import run_door
from qlora_ray.errors import ConfigError

if TYPE_CHECKING:
    from qlora_ray.exporting.hub import PushPlan
    from qlora_ray.exporting.inventory import Bundle
    from qlora_ray.exporting.merge import MergeOptions

MERGE_ONLY = ("dtype", "head_dtype", "nf4_copy")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qlora_ray.export", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SWEEP", help="results/<name>, or a bundle to zip or push")
    parser.add_argument("--to", type=Path, metavar="DIR", help="the bundle's folder: new, or an earlier bundle")
    parser.add_argument("--trial", default="best", metavar="ID", help="a complete trial (default: best, the winner)")
    parser.add_argument(
        "--merge",
        choices=["auto", "w16", "dequant", "none"],
        default="auto",
        help="how adapter and base become one model: auto measures both ways and keeps the closer (default)",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "checkpoint", "bf16", "fp16", "fp32"],
        help="of the merged weights: auto is what the adapter was trained in, checkpoint what the base is stored in",
    )
    parser.add_argument("--head-dtype", choices=["bf16", "fp16", "fp32"], help="of the merged model's output head")
    parser.add_argument("--nf4-copy", action="store_true", help="also write the merged model quantized to NF4 again")
    parser.add_argument("--zip", action="store_true", dest="make_zip", help="also write DIR.zip")
    parser.add_argument("--push", metavar="USER/REPO", help="upload the bundle to the Hugging Face hub, private")
    parser.add_argument("--public", action="store_true", help="make a repository that --push creates public")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="e.g. model.name=/new/place"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, 2 for bad input, 130 or 143 if it is stopped."""
    arguments = make_parser().parse_args(argv)
    arguments.source = _as_place(arguments.source)
    arguments.to = None if arguments.to is None else _as_place(arguments.to)
    return run_door(lambda: _run(arguments))


def _as_place(path: Path) -> Path:
    """A folder as it was typed, `~` expanded; one without a name of its own, as `.`, by its whole path."""
    try:
        path = path.expanduser()
    except RuntimeError:
        # Of a user that is not there: a name as any other.
        return path
    # Others are not resolved: a link is to be seen as one, and messages have what was typed.
    return path if path.name not in ("", "..") else path.resolve()


def _run(arguments: argparse.Namespace) -> int:
    from qlora_ray.console import Console
    from qlora_ray.exporting.outcome import format_size, next_commands

    _check_arguments(arguments)
    tell = Console().line
    is_old = (arguments.source / "bundle.json").is_file()
    # What would stop a push is said before minutes of merging.
    plan = _plan_push(arguments, tell) if arguments.push else None
    bundle = _reopen(arguments) if is_old else _write(arguments, tell)
    if arguments.make_zip:
        from qlora_ray.exporting.archive import zip_bundle

        path = zip_bundle(bundle)
        tell(f"zip     {path} ({format_size(path.stat().st_size)})")
    if plan is not None:
        from qlora_ray.exporting.hub import push_bundle

        tell(f"pushed  {push_bundle(bundle, plan=plan, tell=tell)}")
    for line in next_commands(bundle, is_pushed=plan is not None):
        tell(line)
    return 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.public and not arguments.push:
        raise ConfigError("--public: says what --push makes, got no --push. Add --push USER/REPO, or drop it.")
    asked = [name for name in MERGE_ONLY if getattr(arguments, name)]
    if arguments.merge == "none" and asked:
        option = f"--{asked[0].replace('_', '-')}"
        raise ConfigError(f"{option}: is of the merged model, got --merge none. Drop one of them.")


def _write(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Bundle:
    from qlora_ray.console import noise_to
    from qlora_ray.exporting.bundle import write_bundle
    from qlora_ray.exporting.inventory import check_target
    from qlora_ray.exporting.outcome import describe_bundle
    from qlora_ray.exporting.selection import select_trial

    if arguments.to is None:
        raise ConfigError("--to: must name the bundle's folder, got none. Add --to DIR.")
    check_target(arguments.to, sweep=arguments.source)
    if arguments.make_zip:
        from qlora_ray.exporting.archive import check_archive_target

        check_archive_target(arguments.to)
    selection = select_trial(arguments.source, trial=arguments.trial, overrides=arguments.overrides)
    winner = "the winner" if selection.is_winner else "not the winner"
    tell(f"trial {selection.trial} of {selection.paths.name}, {winner}")
    options, device = _merge_options(arguments)
    # What transformers and bitsandbytes print while they load is of no use here.
    with noise_to(Path(os.devnull)) as console:
        bundle = write_bundle(selection, to=arguments.to, merge=options, device=device, tell=console.line)
    for line in describe_bundle(bundle):
        tell(line)
    return bundle


def _merge_options(arguments: argparse.Namespace) -> tuple[MergeOptions | None, str]:
    """How to merge, and on which device."""
    if arguments.merge == "none":
        return None, "cpu"
    import torch

    from qlora_ray.exporting.merge import MergeOptions

    options = MergeOptions(
        rule=arguments.merge,
        dtype=arguments.dtype or "auto",
        head_dtype=arguments.head_dtype,
        nf4_copy=arguments.nf4_copy,
    )
    return options, "cuda:0" if torch.cuda.is_available() else "cpu"


def _reopen(arguments: argparse.Namespace) -> Bundle:
    from qlora_ray.exporting.inventory import read_bundle

    defaults = make_parser().parse_args([str(arguments.source)])
    of_sweeps = ("to", "trial", "merge", *MERGE_ONLY, "overrides")
    asked = [name for name in of_sweeps if getattr(arguments, name) != getattr(defaults, name)]
    if asked or not (arguments.push or arguments.make_zip):
        got = f"--{'set' if asked[0] == 'overrides' else asked[0].replace('_', '-')}" if asked else "neither"
        raise ConfigError(
            f"{arguments.source}: a bundle takes --zip and --push and nothing else, got {got}. "
            "Give the sweep's folder to export again."
        )
    bundle = read_bundle(arguments.source)
    if bundle is None:
        raise ConfigError(f"{arguments.source}: must be a sweep or a bundle, got a bundle.json of another kind.")
    return bundle


def _plan_push(arguments: argparse.Namespace, tell: Callable[[str], None]) -> PushPlan:
    from qlora_ray.exporting.hub import plan_push

    return plan_push(arguments.push, is_public=arguments.public, tell=tell)


if __name__ == "__main__":
    sys.exit(main())
