"""How an adapter and its base become one model, as it is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qlora_ray.config.schema import Precision
from qlora_ray.errors import ConfigError

# Hugging Face's default size of a shard (huggingface_hub 2.4: MAX_SHARD_SIZE, 5GB).
DEFAULT_SHARD_BYTES = 5 * 10**9
# Its units are powers of ten (huggingface_hub 2.4: SIZE_UNITS).
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(?P<number>\d{1,6}(\.\d+)?) ?(?P<unit>[KMGT]B)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Attributes:
        rule: auto measures both and keeps the closer; w16 or dequant makes that one alone.
        dtype: What the merged weights are in. auto: what the adapter computed in while it trained, so that storing the
            sum rounds no more than training did; checkpoint: each tensor's own.
        head_dtype: The same for the head; None means as the rest. A tied embedding is the head too.
        nf4_copy: Also write the merged model quantized again, beside it, as `<name>-nf4`.
        max_shard_bytes: Bytes of weights in one file at most.
    """

    rule: Literal["auto", "w16", "dequant"] = "auto"
    dtype: Literal["auto", "checkpoint", Precision] = "auto"
    head_dtype: Precision | None = None
    nf4_copy: bool = False
    max_shard_bytes: int = DEFAULT_SHARD_BYTES

    def expected_head_dtype(self, *, compute_dtype: Precision) -> Precision | None:
        """What the merged model's head will be in; None if only the base's own files say.

        Args:
            compute_dtype: What the adapter computed in while it trained.
        """
        if self.head_dtype is not None or self.dtype == "checkpoint":
            return self.head_dtype
        return compute_dtype if self.dtype == "auto" else self.dtype


def parse_shard_size(text: str) -> int:
    """Bytes of a size as `save_pretrained` takes it for `max_shard_size`: `5GB` is 5 * 10**9.

    Raises:
        ConfigError: If it is no size, or nothing.
    """
    found = _SIZE.fullmatch(text.strip())
    num_bytes = int(float(found["number"]) * _UNITS[found["unit"].upper()]) if found else 0
    if num_bytes <= 0:
        raise ConfigError(
            f"--max-shard-size: must be a size in KB, MB, GB or TB, got {text!r}. Give one as 2GB, which is 2 * 10^9."
        )
    return num_bytes
