"""A trained adapter is merged, measured, and kept whole; or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import math

import pytest
import torch
import transformers

from qlora_ray.config.schema import Data, Lora, Model
from qlora_ray.data import prepare_data
from qlora_ray.errors import DataError, ModelError, RunError
from qlora_ray.exporting.merge import measure as merge_measure
from qlora_ray.exporting.merge import merged_models
from qlora_ray.exporting.merge import run as merge
from qlora_ray.exporting.merge.options import MergeOptions
from qlora_ray.exporting.merge.report import MergeReport
from qlora_ray.exporting.merge.run import merge_adapter
from qlora_ray.modeling import adapters
from qlora_ray.modeling.answering import hold_dequantized as hold
from qlora_ray.modeling.loading import load_base, load_tokenizer
from qlora_ray.runs import read_json
from qlora_ray.scoring.generation import generate_answers
from qlora_ray.scoring.loss import evaluate_loss
from tests.unit.evaluation_fixtures import make_split
from tests.unit.merge_fixtures import SPLIT, as_model, loaded, save_adapter, save_base

pytestmark = pytest.mark.slow

NUM_STEPS = 12
BATCH_SIZE = 8
LEARNING_RATE = 1e-2
NUM_PROMPTS = 32
MAX_NEW_TOKENS = 16


def run(base, adapter, to, *, method="nf4", split=SPLIT, tell=lambda line: None, device="cpu", **options):
    model, quantization = base if isinstance(base, tuple) else as_model(base, method)
    return merge_adapter(
        adapter,
        model=model,
        quantization=quantization,
        held_out=split,
        to=to,
        options=MergeOptions(**options),
        device=device,
        tell=tell,
    )


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Measures little: what is measured is held against whole forwards elsewhere."""
    monkeypatch.setattr(merge_measure, "MAX_ROWS", 16)
    monkeypatch.setattr(merge_measure, "MAX_ANSWER_TOKENS", 8)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random base in bf16, and an adapter on it."""
    folder = tmp_path_factory.mktemp("llama")
    base = save_base(folder / "base", "llama", dtype=torch.bfloat16)
    return base, save_adapter(folder / "adapter", base)


@pytest.fixture(scope="module")
def quickstart():
    """The embedded task, tokenized."""
    return prepare_data(Data(max_length=256), tokenizer=load_tokenizer(Model()), data_seed=7)


@pytest.fixture(scope="module")
def trained(quickstart, tmp_path_factory):
    """An adapter trained on the embedded task for some steps, on the base in NF4."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model, quantization = as_model("embedded", "nf4")
    base = load_base(model, quantization=quantization, device="cpu")
    tuned = adapters.attach_adapter(base, Lora(r=8, lora_dropout=0.0), seed=7)
    trainable = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE)
    rows = quickstart.train
    for step in range(NUM_STEPS):
        batch = range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows.input_ids[row]) for row in batch], True, 0)
        masks = [torch.tensor(rows.completion_mask[row]) for row in batch]
        labels = ids.masked_fill(torch.nn.utils.rnn.pad_sequence(masks, True, 0) == 0, -100)
        tuned(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapters.save_adapter(tuned, folder)
    adapters.detach_adapter(base)
    return folder


@pytest.mark.slow
def test_greedy_tokens_of_the_dequantized_merge_in_fp32_are_the_trained_models(trained, quickstart, tmp_path):
    embedded = as_model("embedded", "nf4")
    report = run(embedded, trained, tmp_path / "merged", split=quickstart.validation, rule="dequant", dtype="fp32")

    def answer(model):
        prompts = quickstart.train.prompt_ids[-NUM_PROMPTS:]
        return generate_answers(
            model, base.tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=25, precision="fp32"
        ).texts

    base = load_base(embedded[0], quantization=embedded[1], device="cpu")
    with adapters.saved_adapter(base, trained) as tuned:
        expected = answer(tuned)
    assert answer(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) == expected
    # The adapter says other things than its base, and better ones: a broken model would prove nothing.
    assert sum(one != other for one, other in zip(expected, answer(base.model), strict=True)) > NUM_PROMPTS / 2
    of_trained, of_base = report.models[:2]
    assert of_trained.loss < of_base.loss - 0.2
    # fp32 rounding alone.
    assert report.kept.kl < 1e-6 < of_base.kl
    assert report.kept.token_agreement == 1.0


def test_auto_keeps_the_merge_that_is_closer_as_it_was_measured_and_deletes_the_other(llama, tmp_path):
    base, adapter = llama
    lines = []
    report = run(base, adapter, tmp_path / "merged", tell=lines.append)

    by_name = {model.name: model for model in report.models}
    assert list(by_name) == ["nf4 + adapter", "nf4 base", "w16", "dequant"]
    assert report.rule == min(("w16", "dequant"), key=lambda name: by_name[name].kl)
    assert by_name["nf4 base"].kl > by_name[report.rule].kl > 0
    assert {path.name for path in tmp_path.iterdir()} == {"merged"}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        "config.json",
        "generation_config.json",
        "merge_report.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    written = json.loads((tmp_path / "merged" / "merge_report.json").read_text())
    assert MergeReport.from_dict(written).to_dict() == written == json.loads(json.dumps(report.to_dict()))
    # Trained in fp32 on a base that is stored in bf16.
    assert report.dtype == report.head_dtype == "fp32"
    assert report.adapter["num_layers"] == 8
    assert len(report.adapter["sha256"]) == 64 and report.base["hash"].startswith("sha256:")
    assert report.rows == {"split": "validation", "num_rows": 4, "num_positions": 25, "num_answers": 4}
    figures = [value for model in report.models for value in vars(model).values() if isinstance(value, float)]
    assert all(map(math.isfinite, figures))
    assert all(model.changed_share is not None for model in report.models[2:])
    assert any("measuring dequant" in line for line in lines)

    run(base, adapter, tmp_path / "alone", rule=report.rule)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("merged", "alone")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("lora", "holds"), [({}, True), ({"use_dora": True}, False)])
def test_the_trained_model_and_its_base_have_pefts_losses_and_hold_4_bit_weights_dequantized(
    lora, holds, llama, tmp_path, monkeypatch
):
    base, _ = llama
    adapter = save_adapter(tmp_path / "adapter", base, **lora)
    made = []
    monkeypatch.setattr(
        merge, "hold_dequantized", lambda *args, **kwargs: made.append(hold(*args, **kwargs)) or made[-1]
    )
    report = run(base, adapter, tmp_path / "merged", rule="dequant")
    assert [wrapped is not None for wrapped in made] == [holds]

    with loaded(base, adapter, "nf4") as plain:
        of_trained = evaluate_loss(plain.tuned, SPLIT, batch_size=4, pad_token_id=0, precision="fp32").loss
        with plain.tuned.disable_adapter():
            of_base = evaluate_loss(plain.tuned, SPLIT, batch_size=4, pad_token_id=0, precision="fp32").loss
    assert [model.loss for model in report.models[:2]] == pytest.approx([of_trained, of_base], rel=1e-5)
    assert abs(of_trained - of_base) > 1e-3


def test_auto_drops_a_merge_whose_outputs_are_nan_and_says_so(llama, tmp_path, monkeypatch):
    measure = merged_models.measure_model

    def broken_w16(runner, reference, *, name, dtype):
        found = measure(runner, reference, name=name, dtype=dtype)
        return dataclasses.replace(found, kl=math.nan, loss=math.nan) if name == "w16" else found

    monkeypatch.setattr(merged_models, "measure_model", broken_w16)
    report = run(*llama, tmp_path / "merged")
    assert report.rule == "dequant" and "NaN" in report.reason
    assert any(note.startswith("w16: ") and "NaN" in note for note in report.notes)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_base_that_does_not_fit_the_device_is_merged_on_the_cpu(llama, tmp_path, monkeypatch):
    load = merge.load_base
    devices = []

    def load_or_run_out(model, *, quantization, device):
        devices.append(device)
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(model, quantization=quantization, device=device)

    monkeypatch.setattr(merge, "load_base", load_or_run_out)
    lines = []
    report = run(*llama, tmp_path / "merged", rule="dequant", device="cuda:0", tell=lines.append)
    assert devices == ["cuda:0", "cpu"] and report.rule == "dequant"
    assert "cuda:0" in lines[0] and "CPU" in lines[0]


def test_a_base_that_fits_nowhere_is_one_error_and_leaves_nothing(llama, tmp_path, monkeypatch):
    def run_out(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(merge, "load_base", run_out)
    # It goes on to the CPU, and fails there too.
    with pytest.raises(RunError, match="must fit the memory of this machine"):
        run(*llama, tmp_path / "merged", device="cuda:0")
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_was_trained_unquantized_has_one_merge(llama, tmp_path):
    report = run(*llama, tmp_path / "merged", method="none", rule="auto", dtype="fp32")

    assert [model.name for model in report.models] == ["none + adapter", "none base", "w16"]
    assert "trained unquantized" in report.reason
    assert report.kept.kl < 1e-6


def test_a_quantized_copy_lies_beside_the_merged_model(llama, tmp_path):
    base, adapter = llama
    report = run(base, adapter, tmp_path / "merged", rule="w16", nf4_copy=True)

    assert report.nf4_copy == "merged-nf4"
    assert report.models[-1].name == "nf4 copy"
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "merged-nf4"}
    assert (tmp_path / "merged-nf4" / "tokenizer.json").is_file()
    # Alone it still says what it was made of.
    reports = [read_json(tmp_path / name / "merge_report.json") for name in ("merged", "merged-nf4")]
    assert reports[0] == reports[1] and reports[0]["nf4_copy"] == "merged-nf4"


def test_changes_lost_in_bf16_fail_and_are_kept_in_fp32(llama, tmp_path):
    base, _ = llama
    # B is the noise, and A is PEFT's own: deltas of about 1e-9 beside weights of 0.1, of which bf16 keeps 8 bits.
    small = save_adapter(tmp_path / "adapter", base, scale=1e-9)
    with pytest.raises(ModelError, match=r"must change a weight in bf16, got none: .*e-\d\d"):
        run(base, small, tmp_path / "out" / "merged", rule="w16", dtype="checkpoint")
    assert list((tmp_path / "out").iterdir()) == []
    assert run(base, small, tmp_path / "out" / "merged", rule="w16").kept.changed_share > 0


def test_an_older_model_stays_where_the_new_one_fails(llama, tmp_path):
    base, _ = llama
    older = tmp_path / "merged" / "model.safetensors"
    older.parent.mkdir()
    older.write_bytes(b"older")
    with pytest.raises(ModelError, match="must fit torch"):
        run(base, save_adapter(tmp_path / "huge", base, scale=300.0), older.parent, rule="w16", dtype="fp16")
    assert older.read_bytes() == b"older"


@pytest.mark.parametrize("name", ["save_file", "write_text"])
def test_a_disk_that_fills_up_leaves_nothing_behind(name, llama, tmp_path, monkeypatch):
    from safetensors import torch as safetensors_torch

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = safetensors_torch if name == "save_file" else merge.Path
    monkeypatch.setattr(target, name, full)
    with pytest.raises(RunError, match="merged: the merged model must fit the disk"):
        run(*llama, tmp_path / "out" / "merged", nf4_copy=True)
    monkeypatch.undo()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_error(llama, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/merged: cannot be written"):
        run(*llama, tmp_path / "file" / "merged")


def test_held_out_rows_without_answers_are_an_error(llama, tmp_path):
    with pytest.raises(DataError, match="must have a row with an answer"):
        run(*llama, tmp_path / "merged", split=make_split([(4, 0)]))
    assert list(tmp_path.iterdir()) == []
