"""What differs between two configs."""

from __future__ import annotations

from qlora_ray.config.differences import list_differences


def test_keys_that_differ_are_listed_by_path_with_both_values() -> None:
    was = {"a": {"b": 1, "c": [1], "d": {"e": None}}, "f": "x"}
    now = {"a": {"b": 1, "c": [2], "d": {"e": 3}}, "f": "x"}
    assert list(map(str, list_differences(was, now))) == ["a.c: was [1], now [2]", "a.d.e: was None, now 3"]


def test_a_key_that_only_one_of_them_knows_is_no_difference() -> None:
    assert list_differences({"a": {"old": 1}}, {"a": {"new": 1}, "b": 2}) == []


def test_a_section_that_became_a_value_is_one_difference() -> None:
    assert [str(found) for found in list_differences({"a": {"b": 1}}, {"a": "c"})] == ["a: was {'b': 1}, now 'c'"]
