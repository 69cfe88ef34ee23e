"""What a trial leaves on disk says of itself where it is from."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ray.modeling.identity import read_adapter_origin
from qlora_ray.orchestration.executor.state_writer import StateWriter
from qlora_ray.runs import SweepPaths

ORIGIN = {"base": {"name": "org/tiny", "revision": "1" * 40}, "quantization": {"method": "int8", "bits": 8}}


def save(trial_id: str, folder: Path) -> None:
    (folder / "adapter_config.json").write_text(trial_id)


def test_an_adapter_says_of_which_trial_it_is_and_on_what_it_was_trained(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    paths.trial("0003").root.mkdir(parents=True)
    writer = StateWriter(paths, ORIGIN)
    writer.write_adapter("0003", save)
    writer.close()
    origin = read_adapter_origin(paths.trial("0003").adapter)
    assert origin is not None and origin.trial == "0003"
    assert (origin.base.name, origin.quantization.method) == ("org/tiny", "int8")
    assert (paths.trial("0003").adapter / "adapter_config.json").read_text() == "0003"


def test_an_adapter_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    paths.trial("0003").root.mkdir(parents=True)
    writer = StateWriter(paths, ORIGIN)

    def fail(trial_id: str, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        writer.write_adapter("0003", fail)
    writer.close()
    assert list(paths.trial("0003").root.iterdir()) == []
