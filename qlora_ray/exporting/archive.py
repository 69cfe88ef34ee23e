"""A bundle as one zip file."""

from __future__ import annotations

import zipfile
from pathlib import Path

from qlora_ray.errors import RunError
from qlora_ray.exporting.inventory import INVENTORY, Bundle
from qlora_ray.runs.whole import whole_file

# Weights do not get smaller by it, and take long.
_STORED = (".safetensors",)


def archive_path(folder: Path) -> Path:
    """Returns the path of a bundle's zip: beside its folder, with `.zip` after its name."""
    return folder.with_name(folder.name + ".zip")


def check_archive_target(folder: Path) -> None:
    """Raises RunError if the zip's name is taken by anything but an earlier bundle's zip."""
    path = archive_path(folder)
    if path.exists() and not _holds_bundle(path):
        raise RunError(f"--zip: {path} must be new or an earlier bundle's, got another file. Move it away.")


def zip_bundle(bundle: Bundle) -> Path:
    """Writes the bundle's zip beside it, whole or not at all; inside, all is in a folder of the bundle's name.

    Raises:
        RunError: If the name is taken, or the disk is full.
    """
    check_archive_target(bundle.folder)
    path = archive_path(bundle.folder)
    names = [*(file["path"] for file in bundle.inventory["files"]), INVENTORY]
    try:
        with whole_file(path) as stream, zipfile.ZipFile(stream, "w", strict_timestamps=False) as archive:
            for name in names:
                kind = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
                archive.write(bundle.folder / name, f"{bundle.name}/{name}", compress_type=kind)
    except OSError as error:
        why = error.strerror or error
        raise RunError(f"--zip: {path} cannot be written: {why}. Free some space; the bundle is whole.") from None
    return path


def _holds_bundle(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        # Damaged: whose it was cannot be seen.
        return False
    return any(name.count("/") == 1 and name.endswith(f"/{INVENTORY}") for name in names)
