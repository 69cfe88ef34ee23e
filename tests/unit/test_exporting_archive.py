"""A bundle's zip: all of it, or none."""

from __future__ import annotations

import errno
import shutil
import zipfile

import pytest

from qlora_ray.errors import RunError
from qlora_ray.exporting.archive import archive_path, zip_bundle
from qlora_ray.exporting.inventory import read_bundle
from tests.exporting_fixtures import snapshot, write_alone, write_sweep


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "s")


def test_the_zip_holds_every_file_under_the_bundles_name(sweep, tmp_path):
    bundle = write_alone(sweep, tmp_path / "b.v1")
    path = zip_bundle(bundle)
    assert path == tmp_path / "b.v1.zip" == archive_path(bundle.folder)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found == {f"{bundle.name}/{name}": content for name, content in snapshot(bundle.folder).items()}
    # Again: an earlier one is replaced.
    assert zip_bundle(bundle) == path


def test_a_zip_that_is_not_ours_stays(sweep, tmp_path):
    bundle = write_alone(sweep, tmp_path / "b")
    (tmp_path / "b.zip").write_text("mine")
    with pytest.raises(RunError, match=r"--zip: .*b\.zip must be new"):
        zip_bundle(bundle)
    assert (tmp_path / "b.zip").read_text() == "mine"


def test_a_disk_that_is_full_while_zipping_leaves_no_half_zip(sweep, tmp_path, monkeypatch):
    bundle = write_alone(sweep, tmp_path / "b")

    def fill_up(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", fill_up)
    with pytest.raises(RunError, match=r"b\.zip cannot be written: No space.*is whole"):
        zip_bundle(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "s"]


def test_a_bundle_does_not_need_the_sweep_any_more(sweep, tmp_path):
    written = write_alone(sweep, tmp_path / "b")
    shutil.rmtree(sweep)
    assert zip_bundle(read_bundle(written.folder)).is_file()


def test_a_damaged_zip_is_anothers_file_wherever_it_is_damaged(sweep, tmp_path):
    bundle = write_alone(sweep, tmp_path / "b")
    whole = zip_bundle(bundle).read_bytes()
    # From the last byte of the last file on: the list of what is in it, and its end record.
    start = whole.index(b"PK\x01\x02")
    places = [start - 1, *range(start, start + 46), *range(len(whole) - 22, len(whole))]
    damaged = [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in places]
    for content in (*damaged, whole[start:], whole[: start // 2] + whole[start:]):
        (tmp_path / "b.zip").write_bytes(content)
        try:
            zip_bundle(bundle)
        except RunError as error:
            assert "b.zip must be new" in str(error)
            assert (tmp_path / "b.zip").read_bytes() == content
