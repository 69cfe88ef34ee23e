"""Reads json, jsonl, csv and parquet files row by row, keeping the place of each row.

Of all but json, which is parsed as a whole, little more than a row is in memory at once.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from qlora_ray.data.examples import Row
from qlora_ray.errors import DataError, first_line
from qlora_ray.formats import plural

if TYPE_CHECKING:
    import _csv

# As editors count lines: files of old Macs end them in CR alone.
LINE_END = re.compile(r"\r\n|\n|\r")
LIST_HINT = "; a file that is one JSON list ends in .json"
# Names of a list of rows, and not of a row's column.
SPLIT_NAMES = {"train", "validation", "test", "rows"}
DEEP = "lists or objects nested too deeply to be read"


def read_rows(name: str, content: bytes, *, limit: int | None = None) -> list[Row]:
    """Parses a file's bytes into rows.

    Args:
        name: The file as the user wrote it; its extension picks the parser, and messages carry it.
        content: The bytes of the file.
        limit: Rows to read at most, from the top; None reads all.

    Returns:
        At least one row. Rows that cannot be parsed on their own (a broken jsonl line, a csv row with a field too many)
        carry a `problem` instead of values.

    Raises:
        DataError: If the file as a whole cannot be parsed, or holds no row.
    """
    return list(islice(iterate_rows(name, io.BytesIO(content)), limit))


def iterate_rows(name: str, stream: BinaryIO) -> Iterator[Row]:
    """Yields the rows of an open file; arguments and errors as those of `read_rows`.

    Args:
        name: The file as the user wrote it.
        stream: The file, which can seek.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in _PARSERS:
        raise DataError(
            f"{name}: a data file must end in {', '.join(sorted(_PARSERS))}, got {suffix or 'no extension'}. "
            "Convert it, or rename it if it is one of these."
        )
    row = None
    try:
        for row in _PARSERS[suffix](name, stream):
            yield row
    except UnicodeDecodeError:
        raise _undecodable(name, stream) from None
    if row is None:
        raise DataError(f"{name}: a dataset must hold at least one row, got none. Check that it is the right file.")


@contextmanager
def _as_text(stream: BinaryIO, *, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    # utf-8-sig drops the byte order mark that Excel and Windows editors put in front.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)
    try:
        yield text
    finally:
        text.detach()  # or it would close the stream, which is its opener's


def _undecodable(name: str, stream: BinaryIO) -> DataError:
    """What to say of a file that is not UTF-8: where the first such byte is."""
    stream.seek(0)
    for number, line in enumerate(stream, start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            return DataError(
                f"{name}:{number}: text must be UTF-8, got byte 0x{line[error.start]:02x}. "
                "Save the file as UTF-8 (`iconv -t UTF-8`)."
            )
    raise AssertionError("a file that could not be decoded has such a line")


def _read_jsonl(name: str, stream: BinaryIO) -> Iterator[Row]:
    # Lines end as in open(newline=None): U+2028 and its like may stand unescaped inside a JSON string. A CR may not.
    with _as_text(stream) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _read_line(f"{name}:{number}", line)


def _read_line(where: str, line: str) -> Row:
    try:
        value = parse_json(line)
    except json.JSONDecodeError as error:
        hint = LIST_HINT if line.lstrip().startswith("[") else ""
        problem = f"a line must be one JSON object, got broken JSON at column {error.colno}: {error.msg}{hint}"
        return Row(where, problem=problem)
    except RecursionError:
        return Row(where, problem=f"a line must be one JSON object, got {DEEP}")
    return _object_row(where, value, is_suspect=_may_hold_surrogates(line))


def _read_json(name: str, stream: BinaryIO) -> Iterator[Row]:
    text = stream.read().decode("utf-8-sig")
    if not text.strip():
        return
    try:
        document = parse_json(text)
    except RecursionError:
        raise DataError(f"{name}: the file must be JSON, got {DEEP}. Correct that place.") from None
    except json.JSONDecodeError as error:
        # Many `.json` files on the hub are JSON lines: then the first line is an object by itself.
        if _is_json_object(LINE_END.split(text.lstrip(), maxsplit=1)[0]):
            stream.seek(0)
            yield from _read_jsonl(name, stream)
            return
        raise DataError(
            f"{name}:{error.lineno}: the file must be JSON, got broken JSON at column {error.colno}: {error.msg}. "
            "Correct that place."
        ) from None
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    elif isinstance(document, dict) and "\n" not in text.strip() and not _is_table(document):
        document = [document]
    if not isinstance(document, list):
        got = f"an object with keys {', '.join(map(str, document))}" if isinstance(document, dict) else _kind(document)
        raise DataError(
            f'{name}: must be a list of objects, or an object with a list under "data", got {got}. '
            "Put the rows into a list (pandas: to_json(orient='records'))."
        )
    is_suspect = _may_hold_surrogates(text)
    for number, value in enumerate(document, start=1):
        yield _object_row(f"{name} row {number}", value, is_suspect=is_suspect)


def _is_table(document: Mapping[str, object]) -> bool:
    """Whether an object is no row: splits, or rows or columns by a key of their own, as pandas writes them."""
    is_indexed = all(
        isinstance(value, dict) and value and not any(isinstance(item, list) for item in value.values())
        for value in document.values()
    )
    return bool(document) and (set(document) <= SPLIT_NAMES or is_indexed)


def _read_csv(name: str, stream: BinaryIO) -> Iterator[Row]:
    old_limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default, 131,072, cuts off long answers
    try:
        with _as_text(stream, newline="") as text:
            yield from _read_fields(name, csv.reader(text, strict=True))
    finally:
        csv.field_size_limit(old_limit)


def _read_fields(name: str, reader: _csv.Reader) -> Iterator[Row]:
    header: list[str] | None = None
    last_line = 0
    try:
        for fields in reader:
            line, last_line = last_line + 1, reader.line_num
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = _check_header(name, [field.strip() for field in fields])
                continue
            where = f"{name}:{line}"
            if len(fields) != len(header):
                problem = f"a row must have {len(header)} fields like the header, got {len(fields)}"
                yield Row(where, problem=problem)
                continue
            nameless = [number for number, name in enumerate(header, start=1) if not name]
            for number in nameless:
                # Excel leaves such columns behind, and pandas its index; other values would be lost without a word.
                if fields[number - 1].strip() and not (number == 1 and fields[0].strip().isdecimal()):
                    raise DataError(
                        f"{where}: a csv column with values must have a name, got a value in column {number}, "
                        f"whose header is empty ({plural(len(nameless), 'column')} of {len(header)} "
                        "without a name). Name it, or empty it."
                    )
            yield Row(where, {key: value for key, value in zip(header, fields, strict=True) if key})
    except csv.Error as error:
        raise DataError(
            f"{name}:{last_line + 1}: must be csv, got a row that cannot be parsed ({error}). Quote it correctly."
        ) from None


def _read_parquet(name: str, stream: BinaryIO) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield Row(f"{name} row {number}", drop_filled_nulls(value))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: must be a parquet file, got something else ({first_line(error).rstrip('.')}). Write it again."
        ) from None


def drop_filled_nulls(row: Mapping[str, object]) -> dict[str, object]:
    """A row of an Arrow table without the nulls inside its columns.

    Arrow gives all objects of a column the same keys, and fills in null where an object has not got one: the schema of
    one tool would have the parameters of all others.
    """
    return {column: _without_nulls(value) for column, value in row.items()}


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _check_header(name: str, header: list[str]) -> list[str]:
    if len(header) == 1 and any(separator in header[0] for separator in ";\t|"):
        raise DataError(f"{name}:1: csv fields must be separated by commas, got {header[0]!r}. Export it with commas.")
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}:1: csv columns must differ in name, got {', '.join(repeated)} twice. Rename one.")
    return header


def parse_json(text: str) -> object:
    """A JSON text's value; a whole number of more digits than Python converts stays the text that it is.

    Raises:
        json.JSONDecodeError: If it is no JSON.
        RecursionError: If it is nested more deeply than Python's parser goes.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        limit = sys.get_int_max_str_digits()
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < limit else digits)


def _may_hold_surrogates(text: str) -> bool:
    """Whether a JSON text has an escape that half a surrogate pair is written by."""
    return "\\ud" in text or "\\uD" in text


def find_half_character(value: object, place: str = "") -> str | None:
    """Where a JSON value has half of a surrogate pair, in words; None where every text can be encoded.

    JSON can say it, and no tokenizer or file takes it.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            character = f"\\u{ord(value[error.start]):04x}, as character {error.start + 1}"
            return f"{place or 'a text'} must be Unicode text, got half a character, {character}"
        return None
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    else:
        items = [(str(number), item) for number, item in enumerate(value, start=1)] if isinstance(value, list) else []
    found = (find_half_character(item, f"{place}.{key}" if place else key) for key, item in items)
    return next((words for words in found if words is not None), None)


def _object_row(where: str, value: object, *, is_suspect: bool = False) -> Row:
    if isinstance(value, dict):
        problem = find_half_character(value) if is_suspect else None
        return Row(where, value) if problem is None else Row(where, problem=problem)
    hint = LIST_HINT if isinstance(value, list) else ""
    return Row(where, problem=f"a row must be a JSON object, got {_kind(value)}{hint}")


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


_PARSERS: dict[str, Callable[[str, BinaryIO], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
FILE_SUFFIXES = tuple(sorted(_PARSERS))
