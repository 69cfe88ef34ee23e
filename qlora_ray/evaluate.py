"""Scores a base, its adapter and the merged model on the same rows, and says which is better.

`python -m qlora_ray.evaluate results/X` finds out what it was given, loads it as it was trained, and goes on where an
earlier run was stopped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from qlora_ray.commands import CommandParser, Result, add_json_option, run_command
from qlora_ray.errors import ConfigError, ModelError

BETTER = "better"
# Of a number of rows or examples; int() raises for thousands of them.
MAX_DIGITS = 15


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="python -m qlora_ray.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("target", help="a sweep, adapter, bundle or model folder, or a hub id")
    parser.add_argument("--trial", metavar="ID", help="a trial of the sweep (default: its winner)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="data and evaluation (default: the sweep's own)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one config value"
    )
    parser.add_argument("--models", metavar="NAMES", help="of base,adapter,merged (default: all there are)")
    parser.add_argument("--merged", type=Path, metavar="DIR", help="a merged model to hold against base and adapter")
    parser.add_argument(
        "--split", choices=["auto", "test", "validation", "none"], default="auto", help="auto: test if there is one"
    )
    parser.add_argument("--shots", metavar="N,...", help="worked examples before each question, e.g. 0,3")
    parser.add_argument("--rows", type=_positive, metavar="N", help="the first N rows, all of them answered")
    parser.add_argument(
        "--prompts",
        action="append",
        default=[],
        metavar="FILE",
        help="prompts to answer, or eqbench, qualitative, redteam",
    )
    parser.add_argument("--max-prompts", type=_positive, metavar="N", help="the first N prompts of each file")
    parser.add_argument("--metric", action="append", default=[], metavar="FILE.py:CLASS", help="a metric of your own")
    parser.add_argument("--lm-eval", metavar="TASK,...", help="tasks of the lm-evaluation-harness")
    parser.add_argument(
        "--lm-eval-shots", type=_whole, metavar="N", help="examples in their prompts (default: as each task says)"
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="where it is written (default: beside the target)")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run left there")
    parser.add_argument(
        "--require-improvement", action="store_true", help="exit with 1 unless the adapter is better than its base"
    )
    add_json_option(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, 1 for no improvement where one is required, 2 for bad input, 130 interrupted."""
    arguments = make_parser().parse_args(argv)
    return run_command(
        lambda: _run(arguments),
        json_of="evaluate" if arguments.json else None,
        stopped="stopped; run it again to go on",
    )


def _run(arguments: argparse.Namespace) -> Result:
    overrides = list(arguments.overrides)
    if arguments.shots is not None:
        overrides.append(f"evaluate.shots=[{_shots(arguments.shots)}]")
    from qlora_ray.console import noise_to
    from qlora_ray.evaluation.run.driver import run_evaluation
    from qlora_ray.evaluation.run.options import Options
    from qlora_ray.evaluation.target.target import Request

    options = Options(
        arguments.target,
        Request(arguments.trial, arguments.merged, arguments.config, overrides),
        models=_names(arguments.models) if arguments.models is not None else None,
        split=arguments.split,
        num_rows=arguments.rows,
        prompt_files=arguments.prompts,
        max_prompts=arguments.max_prompts,
        metrics=arguments.metric,
        tasks=_names(arguments.lm_eval or ""),
        task_shots=arguments.lm_eval_shots,
        to=arguments.to,
        fresh=arguments.fresh,
        needs_verdict=arguments.require_improvement,
    )
    is_live = sys.stdout.isatty()
    with tempfile.TemporaryDirectory() as folder, noise_to(Path(folder) / "noise.log") as console:
        outcome = run_evaluation(options, console=console, is_live=is_live)
    if outcome.lack is not None:
        raise ModelError(outcome.lack)
    deciding = outcome.deciding
    is_refused = arguments.require_improvement and (deciding is None or deciding.verdict != BETTER)
    return Result(
        {
            "folder": str(outcome.folder),
            "verdict": None if deciding is None else deciding.verdict,
            "evaluation": outcome.evaluation,
        },
        exit_code=1 if is_refused else 0,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _shots(text: str) -> str:
    numbers = _names(text)
    if not numbers or not all(map(_is_number, numbers)):
        raise ConfigError(f"--shots: must be numbers like 0,3, got {text!r}. Correct it.")
    return ", ".join(numbers)


def _positive(text: str) -> int:
    if not _is_number(text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text}")
    return int(text)


def _whole(text: str) -> int:
    if not _is_number(text):
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text}")
    return int(text)


def _is_number(text: str) -> bool:
    # int() also takes what no one means: 1_000, or digits of other scripts.
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


if __name__ == "__main__":
    sys.exit(main())
