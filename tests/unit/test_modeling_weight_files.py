"""A base's weights by their headers: what is damaged, missing or of another shape is found before any is read."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qlora_ray import embedded
from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.modeling.loading import pin_revision, read_shape
from qlora_ray.modeling.targets import build_skeleton
from qlora_ray.modeling.weight_files import WEIGHTS, WEIGHTS_INDEX, check_headers, check_weights_fit


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded.base_path(), tmp_path / "base"))


def check(base: Path) -> None:
    model = Model(name=str(base))
    shape = read_shape(model)
    check_headers(model, shape)
    check_weights_fit(model, shape)


def edit_header(base: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = (base / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    written = json.dumps(header).encode()
    (base / WEIGHTS).write_bytes(struct.pack("<Q", len(written)) + written + content[8 + size :])


def edit_config(base: Path, **values: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | values))


def shard(base: Path, index: object) -> None:
    (base / WEIGHTS).rename(base / "model-00001-of-00001.safetensors")
    (base / WEIGHTS_INDEX).write_text(json.dumps(index))


def swap(header: dict[str, Any]) -> None:
    for tensor in header.values():
        if len(tensor.get("shape", ())) == 2:
            tensor["shape"].reverse()


def overlap(header: dict[str, Any]) -> None:
    for name in [name for name in header if name != "__metadata__"][:2]:
        header[name]["data_offsets"] = [0, 4]


def test_a_base_that_asks_for_an_attention_which_is_not_installed_here_fits(base: Path) -> None:
    # Executors take model.attn_implementation.
    edit_config(base, attn_implementation="flash_attention_2")
    check(base)
    assert build_skeleton(Model(name=str(base))).num_parameters() > 0


def test_weights_in_bin_files_alone_are_for_the_library_to_read(base: Path) -> None:
    torch.save(load_file(base / WEIGHTS), base / "pytorch_model.bin")
    (base / WEIGHTS).unlink()
    check(base)


def test_the_shipped_base_is_whole_and_fits(base: Path) -> None:
    check(base)


@pytest.mark.parametrize(
    "content", [b"", b"{}", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 2**40) + b"{}", b"\xff" * 100]
)
def test_weights_that_are_no_safetensors_are_one_line(base: Path, content: bytes) -> None:
    (base / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match="must be a whole safetensors file"):
        check(base)


def test_weights_that_are_cut_or_overlap_are_one_line(base: Path) -> None:
    edit_header(base, overlap)
    with pytest.raises(ModelError, match="must be a whole safetensors file"):
        check(base)
    os.truncate(base / WEIGHTS, 100_000)
    with pytest.raises(ModelError, match="must be a whole safetensors file"):
        check(base)


def test_tensors_of_other_shapes_and_tensors_that_are_missing_are_named(base: Path) -> None:
    edit_header(base, swap)
    with pytest.raises(ModelError, match=r"tensors? of other shapes: .* as \("):
        check(base)
    edit_header(base, swap)
    edit_header(base, lambda header: header.update({"other.norm": header.pop("model.norm.weight")}))
    with pytest.raises(ModelError, match=r"none of 1 tensor: model\.norm\.weight"):
        check(base)


def test_a_config_of_other_sizes_is_told_from_the_weights(base: Path) -> None:
    edit_config(base, vocab_size=10**9)
    with pytest.raises(ModelError, match=r"tensors? of other shapes"):
        check(base)


@pytest.mark.parametrize("layers", [10**9, 10**400])
def test_layers_without_number_are_refused_before_any_is_built(base: Path, layers: int) -> None:
    edit_config(base, num_hidden_layers=layers)
    with pytest.raises(ModelError, match=r"num_hidden_layers in config.json must be at most 10,000"):
        check(base)


def test_more_layers_than_tensors_are_refused_before_any_is_built(base: Path) -> None:
    edit_config(base, num_hidden_layers=9_999)
    with pytest.raises(ModelError, match=r"weights for the 9,999 layers of its config.json, got 38 tensors"):
        check(base)


@pytest.mark.parametrize(
    "index", [[1], {}, {"weight_map": [1]}, {"weight_map": {"a": 5}}, {"weight_map": {"a": "../../x.safetensors"}}]
)
def test_an_index_that_is_none_is_one_line(base: Path, index: object) -> None:
    shard(base, index)
    with pytest.raises(ModelError, match=f"{WEIGHTS_INDEX}: must say of each tensor"):
        check(base)


def test_a_shard_that_is_not_there_is_named(base: Path) -> None:
    shard(base, {"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    with pytest.raises(ModelError, match=r"got no model-00002-of-00002.safetensors"):
        check(base)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "anything"])
def test_a_pipe_in_a_base_is_refused_before_a_library_waits_for_it(base: Path, name: str) -> None:
    (base / name).unlink(missing_ok=True)
    os.mkfifo(base / name)
    with pytest.raises(ModelError, match=f"got a pipe in {name}"):
        pin_revision(Model(name=str(base)))


@pytest.mark.parametrize("content", ["{]", "[]", "[" * 100_000])
def test_a_generation_config_that_transformers_would_pass_over_is_one_line(base: Path, content: str) -> None:
    (base / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json: (cannot be read|must be a JSON object)"):
        pin_revision(Model(name=str(base)))
