"""Writes report.html, report.md and loss_curves.png of a sweep, finished or not, into its folder.

With --rebuild it first writes summary.json and trials.csv again, where they are missing or damaged.
"""

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
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="write summary.json and trials.csv again from events.jsonl and the trials' records, where they differ",
    )
    add_json_option(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, 1 where a file could not be rebuilt, or 2 for a folder that is no sweep's."""
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: _run(arguments), json_of="report" if arguments.json else None)


def _run(arguments: argparse.Namespace) -> Result:
    from qlora_ray.reporting import write_reports
    from qlora_ray.runs import SweepPaths
    from qlora_ray.runs.derived import rebuild
    from qlora_ray.runs.links import check_links

    paths = SweepPaths(arguments.sweep)
    check_links(paths.root)
    rebuilt = rebuild(paths) if arguments.rebuild else ()
    sys.stdout.write("".join(f"{file.name}: {file.words}\n" for file in rebuilt))
    written = write_reports(paths)
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
            "rebuilt": {file.name: file.state for file in rebuilt} if arguments.rebuild else None,
        },
        exit_code=0 if all(file.is_whole for file in rebuilt) else 1,
    )


if __name__ == "__main__":
    sys.exit(main())
