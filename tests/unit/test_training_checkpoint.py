"""A trial's state goes to disk and comes back bit for bit, for every optimizer, and never as pickle."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from qlora_ray.errors import RunError
from qlora_ray.training.checkpoint import (
    FACTS_FILE,
    TENSORS_FILE,
    TrialState,
    find_state,
    flatten_optimizer,
    restore_optimizer,
)

STATE = TrialState(
    trial_id="0003",
    step=50,
    report_index=1,
    adapter={"layer.lora_A.weight": torch.randn(4, 8), "layer.lora_B.weight": torch.zeros(8, 4)},
    optimizer={
        "0/exp_avg": torch.randn(4, 8),
        "0/step": torch.tensor(50.0),
        "1/nested/state1": torch.arange(256, dtype=torch.uint8),
        # The same name as a parameter's: the two kinds must not meet.
        "layer.lora_A.weight": torch.ones(1),
    },
    optimizer_facts={"1/nested/step": 50, "1/rate": 1e-4, "1/name": None},
    loss_scale={"scale": 65536.0, "_growth_tracker": 7},
)


def assert_same(state, expected):
    assert replace(state, adapter={}, optimizer={}) == replace(expected, adapter={}, optimizer={})
    for name in ("adapter", "optimizer"):
        first, second = getattr(state, name), getattr(expected, name)
        assert set(first) == set(second)
        for key, tensor in first.items():
            assert tensor.dtype == second[key].dtype and torch.equal(tensor, second[key])


def test_a_state_is_safetensors_and_json_and_comes_back_as_it_was(tmp_path):
    STATE.save(tmp_path / "state")
    assert_same(TrialState.load(tmp_path / "state"), STATE)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [FACTS_FILE, TENSORS_FILE]
    assert json.loads((tmp_path / "state" / FACTS_FILE).read_text())["trial_id"] == "0003"


def test_a_state_of_version_0_1_still_has_its_pending_report(tmp_path):
    pending = replace(STATE, pending_metrics={"train_loss": 0.5})
    pending.save(tmp_path / "state")
    file = tmp_path / "state" / FACTS_FILE
    facts = json.loads(file.read_text())
    facts["unreported"] = facts.pop("pending_metrics")
    file.write_text(json.dumps(facts))
    assert_same(TrialState.load(tmp_path / "state"), pending)


def test_a_later_state_replaces_the_earlier_one(tmp_path):
    STATE.save(tmp_path / "state")
    later = replace(STATE, step=100, report_index=2, optimizer={})
    later.save(tmp_path / "state")
    assert_same(TrialState.load(tmp_path / "state"), later)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_save_that_fails_keeps_the_earlier_state(tmp_path):
    STATE.save(tmp_path / "state")
    with pytest.raises(TypeError, match="not JSON serializable"):
        replace(STATE, step=100, optimizer_facts={"0/step": object()}).save(tmp_path / "state")
    assert_same(TrialState.load(tmp_path / "state"), STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_tensors_that_are_views_are_saved_too(tmp_path):
    view = torch.randn(8, 4).T
    replace(STATE, adapter={"a": view}).save(tmp_path / "state")
    assert torch.equal(TrialState.load(tmp_path / "state").adapter["a"], view)


def edit_facts(name, value=None):
    """Sets a fact of a state's file, or takes it out."""

    def edit(content):
        facts = {key: old for key, old in json.loads(content).items() if key != name}
        return json.dumps(facts if value is None else {**facts, name: value}).encode()

    return edit


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (FACTS_FILE, None, "no readable trial state"),
        (FACTS_FILE, b"{half", "no readable trial state"),
        (FACTS_FILE, b"\xff\xfe", "no readable trial state"),
        (FACTS_FILE, b'{"format_version": 1}', "format version 2, got 1"),
        (FACTS_FILE, b"{}", "format version 2, got None"),
        (FACTS_FILE, b"[]", "format version 2, got None"),
        (FACTS_FILE, edit_facts("step"), "no readable trial state: KeyError"),
        (FACTS_FILE, edit_facts("train_losses", 3), "no readable trial state: TypeError"),
        (TENSORS_FILE, None, "no readable trial state"),
        (TENSORS_FILE, b"", "no readable trial state"),
        (TENSORS_FILE, b"garbage!" * 10, "no readable trial state"),
        (TENSORS_FILE, lambda content: content[:-10], "no readable trial state"),
    ],
)
def test_a_state_that_cannot_be_read_is_a_run_error(tmp_path, file, change, message):
    STATE.save(tmp_path / "state")
    path = tmp_path / "state" / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()) if callable(change) else change)
    with pytest.raises(RunError, match=f"state: .*{message}"):
        TrialState.load(tmp_path / "state")


# In the order of make_parameters.
NAMES = ["large", "small"]


def make_optimizer(kind, parameters):
    if kind == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=1e-2)
    return {"adamw_torch": torch.optim.AdamW, "sgd without moments": torch.optim.SGD}[kind](parameters, lr=1e-2)


def make_parameters():
    # bitsandbytes keeps 8-bit moments from 4,096 elements on, and 32-bit ones below.
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in (4096, 64)]


def step(optimizer, parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("kind", ["adamw_torch", "adamw_8bit", "sgd without moments"])
def test_an_optimizer_goes_on_from_disk_as_if_it_had_not_stopped(kind, tmp_path):
    through = make_parameters()
    optimizer = make_optimizer(kind, through)
    for seed in range(3):
        step(optimizer, through, seed)
    tensors, facts = flatten_optimizer(optimizer, NAMES)
    if kind == "adamw_8bit":
        moments = {path.partition("/")[0]: tensor.dtype for path, tensor in tensors.items() if path.endswith("/state1")}
        assert moments == {"large": torch.uint8, "small": torch.float32}
    saved = {str(index): parameter.detach().clone() for index, parameter in enumerate(through)}
    replace(STATE, adapter=saved, optimizer=tensors, optimizer_facts=facts).save(tmp_path / "state")
    for seed in range(3, 6):
        step(optimizer, through, seed)

    state = TrialState.load(tmp_path / "state")
    resumed = [torch.nn.Parameter(state.adapter[str(index)]) for index in range(2)]
    optimizer = make_optimizer(kind, resumed)
    restore_optimizer(optimizer, state.optimizer, state.optimizer_facts, NAMES)
    for seed in range(3, 6):
        step(optimizer, resumed, seed)
    for parameter, expected in zip(resumed, through, strict=True):
        assert torch.equal(parameter, expected)


def test_a_flattened_optimizer_is_a_copy_and_empty_before_the_first_step():
    parameters = make_parameters()
    optimizer = make_optimizer("adamw_torch", parameters)
    assert flatten_optimizer(optimizer, NAMES) == ({}, {})
    restore_optimizer(optimizer, {}, {}, NAMES)
    assert optimizer.state_dict()["state"] == {}
    step(optimizer, parameters, 0)
    tensors, _ = flatten_optimizer(optimizer, NAMES)
    before = tensors["large/exp_avg"].clone()
    step(optimizer, parameters, 1)
    assert torch.equal(tensors["large/exp_avg"], before)


def test_restoring_keeps_the_learning_rate_the_optimizer_has():
    parameters = make_parameters()
    old = make_optimizer("adamw_torch", parameters)
    step(old, parameters, 0)
    new = torch.optim.AdamW(make_parameters(), lr=0.5, weight_decay=0.25)
    restore_optimizer(new, *flatten_optimizer(old, NAMES), NAMES)
    assert (new.param_groups[0]["lr"], new.param_groups[0]["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize("file", [FACTS_FILE, TENSORS_FILE])
def test_a_state_that_is_found_but_cannot_be_read_is_none_and_says_why_without_paths(tmp_path, file):
    folder = tmp_path / "state"
    assert find_state(folder) == (None, None)
    STATE.save(folder)
    found, why = find_state(folder)
    assert_same(found, STATE)
    assert why is None
    (folder / file).unlink()
    found, why = find_state(folder)
    assert found is None
    assert why.startswith("holds no readable trial state: ") and str(tmp_path) not in why and file in why


def test_an_optimizer_that_goes_on_from_a_state_leaves_it_as_it_was() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    for _ in range(2):
        parameter.grad = torch.ones(3)
        optimizer.step()
    tensors, facts = flatten_optimizer(optimizer, ["a"])
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    again = torch.optim.AdamW([parameter])
    restore_optimizer(again, tensors, facts, ["a"])
    again.step()
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    assert again.state[parameter]["step"].item() == 3
