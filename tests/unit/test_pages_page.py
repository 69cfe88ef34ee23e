"""The report as it is written: nothing of it can become markup, and page and Markdown tell the same."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_ray.pages.blocks import Document
from qlora_ray.pages.markdown import escape, write_markdown
from qlora_ray.pages.page import TALL_ROWS, write_page
from qlora_ray.report import main
from qlora_ray.reporting import write_report
from qlora_ray.reporting.story import read_story
from qlora_ray.reporting.writing import compose
from qlora_ray.runs import SweepPaths
from tests.sweep_folder import Sketch, edited, write_sweep
from tests.unit.page_reader import PageReader

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> | 漢字 `a` [b](javascript:c)\n# d"
TITLES = [
    "Winner and base",
    "Trials",
    "Failures",
    "How the search went",
    "What the parameters did",
    "Slots over time",
    "Memory",
    "Plan",
    "Data",
    "What really ran",
    "How to get this again",
]


@pytest.fixture(scope="module")
def written(usual_paths: SweepPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with its report."""
    root = shutil.copytree(usual_paths.root, tmp_path_factory.mktemp("page") / "s")
    write_report(SweepPaths(root))
    return root


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """The report of a sweep that is full of markup."""
    return compose(read_story(evil_sweep(tmp_path_factory.mktemp("evil") / "s")))


def evil_sweep(root: Path) -> SweepPaths:
    """A sweep whose names, values, errors and files are full of markup."""
    space = {"lora.target_modules": {"choices": [["q_proj"], "all-linear"]}}
    sketches = [
        Sketch([1.0, 0.5], {"lora.target_modules": ["q_proj"]}),
        Sketch([], {"lora.target_modules": "all-linear"}, "failed", EVIL, EVIL, EVIL),
    ]
    paths = write_sweep(root, sketches, space=space, winner=0)
    with edited(paths.manifest) as manifest:
        manifest["data"]["warnings"] = manifest["unused"] = manifest["plan"]["notes"] = [EVIL]
        manifest["config"]["model"]["name"] = EVIL
    for path in (paths.trial("0000").record, paths.best / "record.json"):
        with edited(path) as record:
            record["executor"] |= {"hostname": EVIL, "device": EVIL}
            # No space takes such a value; a stranger's record may have it.
            record["params"]["lora.target_modules"] = [EVIL]
    return paths


def test_the_page_has_every_section_in_order(written: Path) -> None:
    assert PageReader((written / "report.html").read_text()).texts["h2"] == TITLES
    markdown = (written / "report.md").read_text()
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == TITLES


def test_everything_the_page_needs_stands_in_it(written: Path) -> None:
    page = PageReader((written / "report.html").read_text())
    loaded = [(tag, attrs) for tag, attrs in page.elements if attrs.get("src") or tag in ("iframe", "object", "embed")]
    assert loaded == []
    links = [attrs["href"] for tag, attrs in page.elements if attrs.get("href")]
    assert links and all(link is not None and link.startswith(("#", "data:")) for link in links)


def test_figures_have_their_takeaway_in_words(written: Path) -> None:
    page = PageReader((written / "report.html").read_text())
    labels = {attrs["data-figure"]: attrs["aria-label"] for _, attrs in page.elements if "data-figure" in attrs}
    assert {"verdict", "curves", "parallel", "slice0", "slice1", "timeline", "memory"} <= set(labels)
    for name, facts in {
        "curves": ("0003", "0.1 after 2,400 samples", "2 of 6 stopped", "2 of 6 failed"),
        "slice1": ("0.002",),
        "timeline": ("% of the slots' time",),
        "memory": ("50 %", "CPU"),
    }.items():
        assert all(fact in str(labels[name]) for fact in facts), labels[name]


def test_the_winners_row_stands_out_and_trials_can_be_sorted(written: Path) -> None:
    page = (written / "report.html").read_text()
    table = page[page.index("data-sortable") :]
    first = table[table.index("<tbody>") : table.index("</tr>", table.index("<tbody>"))]
    assert '<tr class="marked"><td>0003</td>' in first
    assert '<button type="button">learning_rate</button>' in table


def test_texts_of_users_cannot_become_markup(evil: Document) -> None:
    page = PageReader(write_page(evil))
    assert page.text.count("onerror=alert(1)") > 5
    assert not [attrs for tag, attrs in page.elements if tag == "img" or "onerror" in attrs]
    # Ours: the figures' data, plotly.js, drawing, and sorting with unfolding.
    assert [tag for tag, _ in page.elements].count("script") == 4
    figures = next(attrs for tag, attrs in page.elements if tag == "script" and attrs.get("id") == "figures")
    assert figures["type"] == "application/json"
    markdown = write_markdown(evil)
    assert "onerror" in markdown
    for markup in ("<script>", "<img", "](javascript", "\n# d"):
        assert markup not in markdown.replace("\\<", "").replace("\\]", "").replace("\\[", "")


def test_plotly_cannot_take_a_users_text_for_markup(evil: Document) -> None:
    page = write_page(evil)
    start = page.index(">", page.index('id="figures"')) + 1
    figures = json.loads(page[start : page.index("</script>", start)])
    texts = json.dumps(figures, ensure_ascii=False)
    assert "&lt;img src=x" in texts and "<img" not in texts


def test_markdown_tables_keep_their_columns(evil: Document) -> None:
    markdown = write_markdown(evil)
    widths: list[int] = []
    for line in markdown.splitlines():
        if not line.startswith("| "):
            widths = []
            continue
        widths.append(len(re.findall(r"(?<!\\)\|", line)))
        assert len(set(widths)) == 1, line


def test_markdown_takes_special_characters_as_they_are() -> None:
    assert escape("a|b\n<c> [d](e) `f` *g* h_i") == r"a\|b \<c\> \[d\](e) \`f\` \*g\* h_i"


def test_a_long_table_scrolls_in_its_own_box(tmp_path: Path) -> None:
    sketches = [Sketch([1.0], state="pruned") for _ in range(TALL_ROWS + 1)]
    document = compose(read_story(write_sweep(tmp_path / "s", sketches, status="no_winner", has_journal=False)))
    assert 'class="scroll tall"' in write_page(document)


def test_a_sweep_without_trials_has_a_page_without_plotly(tmp_path: Path) -> None:
    page = write_page(compose(read_story(write_sweep(tmp_path / "s", [], status=None))))
    assert "No trial was opened." in page
    assert len(page) < 100_000


def test_problems_with_files_stand_on_the_page(paths: SweepPaths) -> None:
    (paths.best / "scores.json").write_text("[]")
    text = PageReader(write_page(compose(read_story(paths)))).text
    assert "scores.json" in text and "got list" in text


def test_the_command_can_be_copied(written: Path) -> None:
    command = shlex.join(["python", "-m", "qlora_ray.sweep", "--set", "results.name=it's a b"])
    assert command in PageReader((written / "report.html").read_text()).text
    assert f"    {command}\n" in (written / "report.md").read_text()


def test_the_winners_record_is_told_in_full_and_in_units(written: Path) -> None:
    text = PageReader((written / "report.html").read_text()).text
    assert all(fact in text for fact in ("memory.peak_bytes", "1 GiB", "times.train_s", "40.0 s"))


def test_the_command_prints_the_verdict_and_all_paths(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(paths.root)]) == 0
    verdict, page, markdown, losses = capsys.readouterr().out.splitlines()
    assert verdict.startswith("Trial 0003 is better than its base.") and "exact_match" in verdict
    assert Path(page) == paths.root / "report.html" and Path(page).exists()
    assert Path(markdown) == paths.root / "report.md" and Path(markdown).exists()
    assert Path(losses) == paths.root / "loss_curves.png" and Path(losses).exists()


@pytest.mark.parametrize("exists", [True, False])
def test_the_command_refuses_what_is_no_sweep_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    folder = tmp_path if exists else tmp_path / "nowhere"
    assert main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_leaves_nothing(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(paths.root.iterdir())

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr("qlora_ray.reporting.writing.write_page", fail)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(paths)
    assert sorted(paths.root.iterdir()) == before


def test_the_package_and_the_command_load_nothing_heavy() -> None:
    code = (
        "import sys, qlora_ray.report, qlora_ray.reporting; "
        "print(sorted({'torch', 'ray', 'plotly', 'optuna', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
