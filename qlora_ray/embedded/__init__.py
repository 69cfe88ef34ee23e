"""A tiny base model and a text-to-SQL task that ship with the package, so that nothing has to be downloaded.

The base is a Llama of about 2 M parameters, pretrained on generated questions over thousands of made-up
schemas. The task is one that it has not seen: questions about the public classicmodels schema, with a
generated SQLite database to run the answers on. `python -m tools.embedded_task.build` makes all of it again.
Importing this package costs nothing: it only knows where the files are.
"""

from pathlib import Path

__all__ = [
    "assets_path",
    "base_path",
    "database_path",
    "manifest_path",
    "test_path",
    "train_path",
    "validation_path",
]


def assets_path() -> Path:
    """Returns the folder that holds everything that `build` makes."""
    return Path(__file__).parent / "assets"


def base_path() -> Path:
    """Returns the base model's folder: config, safetensors weights, tokenizer and chat template."""
    return assets_path() / "base"


def train_path() -> Path:
    """Returns the training pairs: one JSON object per line, with `question`, `sql` and `kind`."""
    return assets_path() / "train.jsonl"


def validation_path() -> Path:
    """Returns the validation pairs, in `train_path`'s form. No other split has one of its queries."""
    return assets_path() / "validation.jsonl"


def test_path() -> Path:
    """Returns the test pairs, in `train_path`'s form. No other split has one of its queries."""
    return assets_path() / "test.jsonl"


def database_path() -> Path:
    """Returns the SQLite file that the task's queries run on. Open it read-only: the package owns it."""
    return assets_path() / "classicmodels.sqlite"


def manifest_path() -> Path:
    """Returns the record of how the files were made: seeds, counts, overlaps, pretraining figures, hashes."""
    return assets_path() / "manifest.json"
