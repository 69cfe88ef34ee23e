"""A checkpoint is read tensor by tensor, and written in shards that transformers loads."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple

import pytest
import torch
import transformers
from safetensors.torch import load_file

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError, RunError
from qlora_ray.exporting.merge.checkpoint import check_space, full_disk_as_run_error, open_checkpoint, write_shards
from tests.unit.merge_fixtures import save_base

SHARD_BYTES = 100_000
WEIGHTS = "model.safetensors"
QUANTIZED = '{"quantization_config": {"quant_method": "gptq", "bits": 4}}'


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A base that no test changes."""
    return save_base(tmp_path_factory.mktemp("llama") / "base", "llama", dtype=torch.bfloat16)


@pytest.fixture
def base(llama, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(llama, tmp_path / "base")


def open_base(folder):
    return open_checkpoint(Model(name=str(folder)))


def copy_tensors(checkpoint, folder, *, max_shard_bytes=SHARD_BYTES, read=None):
    sizes = {name: 2 * tensor.num_elements for name, tensor in checkpoint.tensors.items()}
    folder.mkdir()
    lines = []
    num = write_shards(folder, sizes, read or checkpoint.read, max_shard_bytes=max_shard_bytes, tell=lines.append)
    return num, lines, sizes


def test_a_checkpoint_lists_its_tensors_with_shapes_and_reads_each(llama):
    checkpoint = open_base(llama)

    expected = load_file(llama / "model.safetensors")
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert checkpoint.tensors[name].num_elements == tensor.numel()
        assert torch.equal(checkpoint.read(name), tensor)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"BF16"}
    assert checkpoint.config["model_type"] == "llama"


def test_a_sharded_checkpoint_reads_as_the_single_file_does_and_a_missing_shard_is_named(llama, tmp_path):
    sharded = save_base(tmp_path / "sharded", "llama", dtype=torch.bfloat16, max_shard_size="100KB")
    assert not (sharded / "model.safetensors").exists()
    one, many = open_base(llama), open_base(sharded)
    assert one.tensors.keys() == many.tensors.keys()
    assert all(torch.equal(one.read(name), many.read(name)) for name in one.tensors)

    min(sharded.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"every shard of its index, got no model-00001-of-\d+"):
        open_base(sharded)


def test_shards_stay_below_the_bound_and_load_as_the_model_they_were(llama, tmp_path):
    num, lines, _ = copy_tensors(open_base(llama), tmp_path / "copy")
    for file in llama.glob("*.json"):
        shutil.copy(file, tmp_path / "copy")

    files = sorted((tmp_path / "copy").glob("*.safetensors"))
    assert len(files) == num == len(lines) > 2
    assert f"shard 1 of {num}" in lines[0]
    sizes = [sum(2 * tensor.numel() for tensor in load_file(file).values()) for file in files]
    assert max(sizes) <= SHARD_BYTES
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype="auto")
    expected = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype="auto")
    assert all(torch.equal(one, expected.state_dict()[name]) for name, one in loaded.state_dict().items())


def test_one_shard_has_no_index(llama, tmp_path):
    assert copy_tensors(open_base(llama), tmp_path / "copy", max_shard_bytes=10**9)[0] == 1
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["model.safetensors"]


def test_only_one_shard_is_held_at_a_time(llama, tmp_path, monkeypatch):
    from safetensors import torch as safetensors_torch

    checkpoint, made, seen = open_base(llama), [], []
    save = safetensors_torch.save_file
    monkeypatch.setattr(
        safetensors_torch,
        "save_file",
        lambda tensors, *args, **kwargs: (seen.append(made[:]), save(tensors, *args, **kwargs)),
    )
    _, _, sizes = copy_tensors(
        checkpoint, tmp_path / "copy", read=lambda name: (made.append(name), checkpoint.read(name))[1]
    )

    # Each shard's tensors are made after the shard before it was written.
    new = [set(after) - set(before) for before, after in zip([[], *seen], seen, strict=False)]
    assert all(sum(sizes[name] for name in names) <= SHARD_BYTES for names in new)
    assert set().union(*new) == set(sizes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: (base / "config.json").unlink(), r"must have config\.json, got none"),
        (
            lambda base: (base / "config.json").write_text(QUANTIZED),
            "16 or 32 bits, or by bitsandbytes, to merge into, got gptq",
        ),
        (lambda base: (base / WEIGHTS).unlink(), r"must have model\.safetensors or \S+index\.json, got neither"),
        (lambda base: (base / WEIGHTS).rename(base / "pytorch_model.bin"), r"as safetensors, got \.bin files only"),
        (lambda base: (base / WEIGHTS).write_bytes(b"\x10" + bytes(999)), "must be a whole safetensors file"),
    ],
)
def test_a_base_whose_weights_cannot_be_merged_into_is_refused(base, damage, message):
    damage(base)
    with pytest.raises(ModelError, match=message):
        open_base(base)


def test_a_hub_id_that_is_neither_cached_nor_reachable_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"merge: .*config\.json"):
        open_base("nobody/no-such-base")


def test_a_hub_id_is_read_from_the_hubs_cache(llama, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(llama, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    checkpoint = open_base("someone/tiny")

    assert checkpoint.tensors.keys() == load_file(llama / "model.safetensors").keys()
    assert checkpoint.find_file("tokenizer.json") is not None
    assert checkpoint.find_file("no-such-file.json") is None


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 2**40 - 2**30, 2**30))
    check_space(tmp_path, 2**29)
    with pytest.raises(RunError, match=r"4\.06 GiB free, got 1 GiB"):
        check_space(tmp_path, 2**32)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 2**40 - 2**22, 2**22))
    with pytest.raises(RunError, match=r"65 MiB free, got 4 MiB"):
        check_space(tmp_path, 2**20)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_is_one_error_whoever_noticed_it(error, tmp_path):
    with pytest.raises(RunError, match=r"must fit the disk, got a full one halfway"), full_disk_as_run_error(tmp_path):
        raise error


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(OSError, match="Permission denied"), full_disk_as_run_error(tmp_path):
        raise OSError(errno.EACCES, "Permission denied")
