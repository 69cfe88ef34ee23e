"""Writes report.html, report.md and loss_curves.png of a sweep, finished or not, into its folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qlora_ray.commands import CommandParser, Result, add_json_option, run_command


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="python -m qlora_ray.report", description=__doc__)
    parser.add_argument("sweep", type=Path, metavar="DIR", help="a sweep's folder, e.g. results/quickstart")
    parser.add_argument("--open", choices=("yes", "no"), default="no", help="open the page in a browser (default: no)")
    add_json_option(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for a folder that is no sweep's."""
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: _run(arguments), json_of="report" if arguments.json else None)


def _run(arguments: argparse.Namespace) -> Result:
    from qlora_ray.reporting import write_reports
    from qlora_ray.runs import SweepPaths

    written = write_reports(SweepPaths(arguments.sweep))
    notes = "".join(f"note: {problem}\n" for problem in written.problems)
    files = [written.page, written.markdown, *([written.losses] if written.losses else [])]
    sys.stdout.write(f"{written.verdict}\n{notes}" + "".join(f"{file}\n" for file in files))
    if arguments.open == "yes":
        import webbrowser

        webbrowser.open(written.page.resolve().as_uri())
    return Result(
        {
            "page": str(written.page),
            "markdown": str(written.markdown),
            "losses": str(written.losses) if written.losses else None,
            "verdict": written.verdict,
            "problems": list(written.problems),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
