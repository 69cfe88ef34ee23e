"""What a wheel holds: the package with its assets and prompts, none of the tools that made them, in under 12 MB."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest

setuptools = pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[2]
LARGEST_BYTES = 12 * 10**6


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """What setuptools copies into a wheel of this tree, as paths from its root; nothing is built."""
    from setuptools.config.pyprojecttoml import apply_configuration

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        distribution = apply_configuration(setuptools.Distribution({"script_name": "setup.py"}), "pyproject.toml")
        # Without it setuptools writes an egg-info folder, to look for a MANIFEST.in, which this tree has not.
        distribution.include_package_data = False
        build = distribution.get_command_obj("build_py")
        build.ensure_finalized()
        return [Path(output).relative_to(build.build_lib) for output in build.get_outputs(include_bytecode=False)]


def test_a_wheel_has_every_module_of_the_package_and_nothing_beside_it(files):
    assert not (ROOT / "MANIFEST.in").exists()
    assert {file.parts[0] for file in files} == {"qlora_ray"}
    written = {path.relative_to(ROOT) for path in (ROOT / "qlora_ray").rglob("*.py")}
    assert {file for file in files if file.suffix == ".py"} == written


def test_a_wheel_has_the_embedded_task_and_not_what_built_it(files):
    embedded = {str(PurePath(*file.parts[2:])) for file in files if file.parts[1] == "embedded"}
    assert {name for name in embedded if name.endswith(".py")} == {"__init__.py"}
    assert {"assets/manifest.json", "assets/classicmodels.sqlite", "assets/base/model.safetensors"} <= embedded
    assert {f"assets/{split}.jsonl" for split in ("train", "validation", "test")} <= embedded
    folder = ROOT / "qlora_ray" / "embedded"
    assert {str(path.relative_to(folder)) for path in folder.rglob("assets/**/*") if path.is_file()} <= embedded


def test_a_wheel_has_the_prompt_sets_and_says_that_it_is_typed(files):
    names = {str(file) for file in files}
    assert "qlora_ray/py.typed" in names
    prompts = {str(path.relative_to(ROOT)) for path in (ROOT / "qlora_ray").rglob("prompts/*.jsonl")}
    assert len(prompts) == 3 and prompts <= names


def test_a_wheel_has_the_files_of_the_live_page(files):
    folder = ROOT / "qlora_ray" / "dashboard" / "assets"
    assets = {str(path.relative_to(ROOT)) for path in folder.iterdir()}
    assert "qlora_ray/dashboard/assets/index.html" in assets
    assert assets <= {str(file) for file in files}


def test_a_wheel_is_small_even_before_it_is_compressed(files):
    assert sum((ROOT / file).stat().st_size for file in files) < LARGEST_BYTES
