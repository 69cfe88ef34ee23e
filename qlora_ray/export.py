"""Writes one trial of a sweep as a bundle: adapter, merged model, records, model card; zips it, pushes it to the hub.

`python -m qlora_ray.export results/X --to DIR` exports the winner. Given a bundle in place of a sweep, it zips or
pushes that one as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qlora_ray.commands import CommandParser, Result, add_json_option, as_place, run_command
from qlora_ray.errors import ConfigError

if TYPE_CHECKING:
    from qlora_ray.exporting.hub_plan import PushPlan
    from qlora_ray.exporting.inventory import Bundle
    from qlora_ray.exporting.merge.options import MergeOptions
    from qlora_ray.exporting.naming import BundleName

MERGE_ONLY = ("dtype", "head_dtype", "nf4_copy", "max_shard_size")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="python -m qlora_ray.export", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=as_place, metavar="SWEEP", help="results/<name>, or a bundle to zip or push")
    parser.add_argument("--to", type=as_place, metavar="DIR", help="the bundle's folder: new, or an earlier bundle")
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
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of one file of merged weights, as 2GB (default: 5GB)")
    parser.add_argument("--zip", action="store_true", dest="make_zip", help="also write DIR.zip")
    parser.add_argument(
        "--push",
        metavar="USER[/REPO]",
        help="upload the bundle to the Hugging Face hub, private; without REPO under the bundle's own name",
    )
    parser.add_argument(
        "--push-adapters",
        action="store_true",
        help="push what the sweep's export.push_every could not push while it ran, and write no bundle",
    )
    parser.add_argument("--public", action="store_true", help="make a repository that --push creates public")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="e.g. model.name=/new/place"
    )
    add_json_option(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, 2 for bad input, 130 or 143 if it is stopped."""
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: _run(arguments), json_of="export" if arguments.json else None)


def _run(arguments: argparse.Namespace) -> Result:
    from qlora_ray.console import Console
    from qlora_ray.exporting.delivery import next_commands
    from qlora_ray.exporting.inventory import INVENTORY, looking_into
    from qlora_ray.formats import format_bytes

    _check_arguments(arguments)
    tell = Console().line
    if arguments.push_adapters:
        return _push_adapters(arguments, tell)
    with looking_into(str(arguments.source)):
        is_old = (arguments.source / INVENTORY).is_file()
    bundle, plan = _reopen(arguments, tell) if is_old else _write(arguments, tell)
    facts: dict[str, Any] = {"folder": str(bundle.folder), "bytes": bundle.num_bytes, "notes": list(bundle.notes)}
    facts |= {"bundle": bundle.inventory, "zip": None, "url": None}
    if arguments.make_zip:
        from qlora_ray.exporting.archive import zip_bundle

        path = zip_bundle(bundle)
        tell(f"zip     {path} ({format_bytes(path.stat().st_size)})")
        facts["zip"] = str(path)
    if arguments.push is not None:
        from qlora_ray.exporting.hub import push_bundle
        from qlora_ray.exporting.hub_plan import name_repository

        if plan is None or plan.repo_id != name_repository(arguments.push, name=bundle.name):
            # The base's own files decided on the bundle's name.
            plan = _plan_push(arguments, name=bundle.name, tell=tell)
        facts["url"] = push_bundle(bundle, plan=plan, tell=tell)
        tell(f"pushed  {facts['url']}")
    for line in next_commands(bundle, is_pushed=arguments.push is not None):
        tell(line)
    return Result(facts)


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.public and arguments.push is None:
        raise ConfigError("--public: says what --push makes, got no --push. Add --push USER/REPO, or drop it.")
    asked = [name for name in MERGE_ONLY if getattr(arguments, name) not in (None, False)]
    if arguments.merge == "none" and asked:
        option = f"--{asked[0].replace('_', '-')}"
        raise ConfigError(f"{option}: is of the merged model, got --merge none. Drop one of them.")


def _push_adapters(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Result:
    """What a sweep has not pushed yet, as its own config says."""
    from qlora_ray.exporting.later_pushes import push_waiting
    from qlora_ray.runs import SweepPaths

    defaults = make_parser().parse_args([str(arguments.source)])
    others = ("to", "trial", "merge", *MERGE_ONLY, "overrides", "push", "public", "make_zip")
    if any(getattr(arguments, name) != getattr(defaults, name) for name in others):
        raise ConfigError("--push-adapters: takes the sweep's folder and no other option. Drop the others.")
    pushes = push_waiting(SweepPaths(arguments.source), tell=tell)
    return Result({"folder": str(arguments.source), "url": pushes.repository})


def _write(arguments: argparse.Namespace, tell: Callable[[str], None]) -> tuple[Bundle, PushPlan | None]:
    """The new bundle, and where it goes, as far as that was known before it was written."""
    from qlora_ray.exporting.bundle import expected_name
    from qlora_ray.exporting.delivery import check_place, deliver, pick_trial
    from qlora_ray.exporting.source import check_is_sweep

    check_is_sweep(arguments.source)
    if arguments.to is None:
        raise ConfigError("--to: must name the bundle's folder, got none. Add --to DIR.")
    check_place(arguments.to, sweep=arguments.source, has_zip=arguments.make_zip)
    options = _merge_options(arguments)
    selection = pick_trial(arguments.source, trial=arguments.trial, overrides=arguments.overrides, tell=tell)
    plan = None
    if arguments.push is not None:
        # What would stop a push is said before minutes of merging.
        plan = _expect_push(arguments, name=expected_name(selection, merge=options), tell=tell)
    return deliver(selection, to=arguments.to, merge=options, tell=tell), plan


def _merge_options(arguments: argparse.Namespace) -> MergeOptions | None:
    if arguments.merge == "none":
        return None
    from qlora_ray.exporting.merge.options import DEFAULT_SHARD_BYTES, MergeOptions, parse_shard_size

    size = arguments.max_shard_size
    return MergeOptions(
        rule=arguments.merge,
        dtype=arguments.dtype or "auto",
        head_dtype=arguments.head_dtype,
        nf4_copy=arguments.nf4_copy,
        max_shard_bytes=DEFAULT_SHARD_BYTES if size is None else parse_shard_size(size),
    )


def _reopen(arguments: argparse.Namespace, tell: Callable[[str], None]) -> tuple[Bundle, PushPlan | None]:
    """The bundle that is there, and where it goes."""
    from qlora_ray.exporting.inventory import read_bundle

    defaults = make_parser().parse_args([str(arguments.source)])
    of_sweeps = ("to", "trial", "merge", *MERGE_ONLY, "overrides")
    asked = [name for name in of_sweeps if getattr(arguments, name) != getattr(defaults, name)]
    if asked or not (arguments.push is not None or arguments.make_zip):
        got = f"--{'set' if asked[0] == 'overrides' else asked[0].replace('_', '-')}" if asked else "neither"
        raise ConfigError(
            f"{arguments.source}: a bundle takes --zip and --push and nothing else, got {got}. "
            "Give the sweep's folder to export again."
        )
    bundle = read_bundle(arguments.source)
    if bundle is None:
        raise ConfigError(
            f"{arguments.source}: must be a sweep or a bundle, got a bundle.json that is damaged or of another kind. "
            "Give the sweep's folder to export again."
        )
    return bundle, None if arguments.push is None else _plan_push(arguments, name=bundle.name, tell=tell)


def _expect_push(
    arguments: argparse.Namespace, *, name: BundleName | None, tell: Callable[[str], None]
) -> PushPlan | None:
    """Where the bundle will go; None if that cannot be known yet, but the hub lets this user write."""
    from qlora_ray.exporting.hub_plan import check_user

    if name is not None or "/" in arguments.push:
        return _plan_push(arguments, name=str(name), tell=tell)
    check_user(arguments.push)
    return None


def _plan_push(arguments: argparse.Namespace, *, name: str, tell: Callable[[str], None]) -> PushPlan:
    from qlora_ray.exporting.hub_plan import name_repository, plan_push

    return plan_push(name_repository(arguments.push, name=name), is_public=arguments.public, tell=tell)


if __name__ == "__main__":
    sys.exit(main())
