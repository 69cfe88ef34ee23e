"""The text of values, the same wherever they are shown."""

from __future__ import annotations

import math

import pytest

from qlora_ray.config import parse_override
from qlora_ray.formats import (
    format_bytes,
    format_count,
    format_duration,
    format_gib,
    format_loss,
    format_number,
    format_score,
    format_setting,
    format_share,
    format_signed,
    format_table,
    format_time,
    format_value,
    list_first,
    plural,
    short_path,
    shorten,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.9, "0:00"),
        (59.99, "0:59"),
        (62, "1:02"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90_061, "25:01:01"),
    ],
)
def test_durations_read_as_clocks(seconds, text):
    assert format_duration(seconds) == text


def test_a_table_is_aligned_and_has_no_trailing_blanks():
    rows = [["trial", "loss", "why"], ["1", "0.5", ""], ["12", "10.25", "stopped"]]
    assert format_table(rows, right=(1,)) == ("trial   loss  why\n1        0.5\n12     10.25  stopped")


def test_a_table_may_have_a_header_only():
    assert format_table([["a", "b"]]) == "a  b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.65, "0.650"),
        (0, "0.000"),
        (0.0123, "0.012"),
        (0.0014, "0.0014"),
        (0.0004, "0.0004"),
        (4e-5, "4e-05"),
        (150.26, "150.260"),
        (999.9994, "999.999"),
        (12345.6, "12346"),
        (2.7e79, "2.7e+79"),
        (math.inf, "inf"),
    ],
)
def test_scores_have_three_decimals_where_they_say_something(value, text):
    assert format_score(value) == text
    assert format_score(value, sign="+") == f"+{text}"
    assert format_score(-float(value)) == (f"-{text}" if value else text)


@pytest.mark.parametrize(("loss", "text"), [(1.08663, "1.0866"), (0.00012345, "0.0001234"), (12345.6, "12346")])
def test_losses_have_four_decimals(loss, text):
    assert format_score(loss, digits=4) == text


def test_a_score_that_is_not_zero_never_reads_as_zero():
    assert all(float(format_score(10.0**power)) > 0 for power in range(-300, 300))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.009820427646968614, "0.00982"),
        (2.7e-5, "2.7e-5"),
        (20000.0, "20000"),
        (2.0, "2"),
        (None, "none"),
        (True, "yes"),
        ([1, "a"], "1, a"),
        (float("nan"), "-"),
    ],
)
def test_values_are_written_to_be_read(value: object, text: str) -> None:
    assert format_value(value) == text


def test_a_missing_number_is_a_dash_and_a_long_text_is_cut() -> None:
    assert format_number(None) == "-"
    assert shorten("a" * 30, 18) == "a" * 17 + "…"


def test_differences_have_a_sign_unless_they_are_none() -> None:
    assert [format_signed(value) for value in (0.52, -1.0056, 0.0, float("inf"))] == ["+0.52", "−1.01", "0", "unknown"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1536, "1.5 KiB"),
        (2**20 - 52, "1024 KiB"),
        (2**20, "1 MiB"),
        (5 * 2**30 // 2, "2.5 GiB"),
    ],
)
def test_a_size_has_the_unit_that_fits(num_bytes: int | None, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_memory_is_in_gib_whatever_its_size() -> None:
    assert [format_gib(size) for size in (0, 2**28, 80 * 2**30)] == ["0.0 GiB", "0.2 GiB", "80.0 GiB"]


def test_counts_have_their_thousands_apart_and_one_is_no_plural() -> None:
    assert [format_count(number) for number in (None, 12, 1_234_567.0)] == ["-", "12", "1,234,567"]
    assert [plural(number, "trial") for number in (0, 1, 2000)] == ["0 trials", "1 trial", "2,000 trials"]


def test_times_are_in_utc_and_shares_in_percent() -> None:
    # The example of RFC 3339, section 5.8, in seconds as `date` has them.
    assert format_time(482196050) == "1985-04-12 23:20:50 UTC" and format_time(None) == "-"
    assert [format_share(share) for share in (None, 0.975, 1)] == ["-", "97.5 %", "100.0 %"]
    assert format_share(0.125, digits=0) == "12 %"


def test_what_is_no_number_has_no_score() -> None:
    assert [format_score(None), format_loss(math.nan), format_loss(1.08663)] == ["-", "-", "1.0866"]


def test_of_many_names_the_first_are_listed_and_the_others_counted() -> None:
    assert [list_first("abc"[:num], limit=2) for num in (1, 2, 3)] == ["a", "a, b", "a, b and 1 more"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.71e-05, "2.71e-05"), (0.002, "0.002"), (16, "16"), (["q_proj", "v_proj"], "['q_proj','v_proj']")],
)
def test_settings_can_be_given_to_set_again(value: object, text: str) -> None:
    assert format_setting(value) == text
    assert parse_override(f"lora.x={text}")[1] == value


@pytest.mark.parametrize(
    ("path", "short"),
    [("lora.r", "r"), ("training.learning_rate", "learning_rate"), ("heads.emotion.weight", "emotion.weight")],
)
def test_a_searched_key_is_called_by_what_tells_it_from_others(path, short):
    assert short_path(path) == short
