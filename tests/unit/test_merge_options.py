"""What is asked of a merge: sizes as transformers takes them, and what a head will be in."""

from __future__ import annotations

import pytest
from huggingface_hub import split_state_dict_into_shards_factory

from qlora_ray.errors import ConfigError
from qlora_ray.exporting.merge.options import DEFAULT_SHARD_BYTES, MergeOptions, parse_shard_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("5GB", DEFAULT_SHARD_BYTES), ("2 GB", 2 * 10**9), ("1.5mb", 1_500_000), (" 10KB ", 10_000), ("1TB", 10**12)],
)
def test_a_size_is_what_hugging_face_takes_it_for(text, num_bytes):
    assert parse_shard_size(text) == num_bytes

    def count(total: int) -> int:
        split = split_state_dict_into_shards_factory(
            {"a": 1, "b": total - 1},
            get_storage_size=lambda size: size,
            filename_pattern="x{suffix}",
            max_shard_size=text,
        )
        return len(split.filename_to_tensors)

    # Two tensors go into one file if both fit its limit.
    assert (count(num_bytes), count(num_bytes + 1)) == (1, 2)


@pytest.mark.parametrize(
    "text", ["", "5", "5G", "5GiB", "0GB", "-1GB", "nanGB", "infGB", "1e3GB", "GB", "٣GB", "0.1KBs"]
)
def test_what_is_no_size_is_said_to_be_none(text):
    with pytest.raises(ConfigError, match="--max-shard-size: must be a size in KB, MB, GB or TB, got "):
        parse_shard_size(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (MergeOptions(), "bf16"),
        (MergeOptions(dtype="fp32"), "fp32"),
        (MergeOptions(dtype="fp16", head_dtype="fp32"), "fp32"),
        (MergeOptions(dtype="checkpoint", head_dtype="bf16"), "bf16"),
        (MergeOptions(dtype="checkpoint"), None),
    ],
)
def test_the_heads_dtype_is_known_before_the_merge_unless_the_base_decides(options, expected):
    assert options.expected_head_dtype(compute_dtype="bf16") == expected
