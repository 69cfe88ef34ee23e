"""Stacks: adapters of several trials in one tensor, moved without loss, padded with what stays zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qlora_ray.config.schema import Training
from qlora_ray.hardware.memory_counts import pad_rank
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack, StackKey
from qlora_ray.modeling.multi_lora.layers import MultiLoraLinear, Switch
from qlora_ray.modeling.multi_lora.layout import RowOwner, TrainingLayout, make_segments
from qlora_ray.training.packed.optimizer import make_optimizer

# (inputs, outputs) by layer number.
WIDTHS = {0: (6, 10), 3: (10, 4), 7: (4, 6)}


def make_stack(bucket: int = 8, *, layers: tuple[int, ...] = (0, 3)) -> AdapterStack:
    return AdapterStack(StackKey(bucket, layers), WIDTHS, device="cpu")


def draw_adapter(r: int, *, seed: int, layers: tuple[int, ...] = (0, 3)) -> dict[int, tuple[Tensor, Tensor]]:
    """A [r, D] and B [O, r] of each layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: (
            torch.randn(r, WIDTHS[layer][0], generator=generator),
            torch.randn(WIDTHS[layer][1], r, generator=generator),
        )
        for layer in layers
    }


@pytest.mark.parametrize("r", [1, 4, 8])
def test_an_adapter_comes_out_of_its_flat_row_as_it_went_in(r: int) -> None:
    stack, adapter = make_stack(), draw_adapter(r, seed=0)
    flat_P = stack.flatten(adapter)
    assert flat_P.shape == (stack.num_parameters,)
    for layer, (a_rD, b_Or) in adapter.items():
        a_cut, b_cut = stack.cut(flat_P, layer, r=r)
        assert torch.equal(a_cut, a_rD)
        assert torch.equal(b_cut, b_Or)
        a_RD, b_OR = stack.cut(flat_P, layer)
        assert not a_RD[r:].any()
        assert not b_OR[:, r:].any()


def test_a_flat_row_has_each_element_in_one_layer_of_the_key() -> None:
    stack = make_stack()
    assert [layer in stack for layer in WIDTHS] == [True, True, False]
    flat_P = torch.zeros(stack.num_parameters)
    for layer in stack.key.layers:
        for view in stack.cut(flat_P, layer):
            view += 1
    assert torch.equal(flat_P, torch.ones(stack.num_parameters))
    assert stack.num_parameters == 8 * (6 + 10 + 10 + 4)


def test_trials_that_come_and_go_leave_the_others_their_weights() -> None:
    stack = make_stack()
    adapters = {f"{seed:04d}": draw_adapter(8, seed=seed) for seed in range(4)}
    expected: list[str] = []
    for change in ("+0000", "+0001", "+0002", "-0001", "+0003", "-0000", "-0003", "-0002", "+0001"):
        name = change[1:]
        if change[0] == "+":
            stack.add(name, stack.flatten(adapters[name]))
            expected.append(name)
        else:
            stack.remove(name)
            expected.remove(name)
        assert (stack.names, len(stack)) == (expected, len(expected))
        for slot, held in enumerate(expected):
            for layer, (a_RD, b_OR) in adapters[held].items():
                assert torch.equal(stack.a(layer)[slot], a_RD)
                assert torch.equal(stack.b(layer)[slot], b_OR)
    with pytest.raises(ValueError, match="4711"):
        stack.remove("4711")


def test_the_views_of_a_layer_are_the_rows_themselves() -> None:
    stack = make_stack()
    for seed in range(3):
        stack.add(f"{seed:04d}", stack.flatten(draw_adapter(8, seed=seed)))
    for weights, gradients in ((stack.a, stack.a_gradient), (stack.b, stack.b_gradient)):
        weights(3)[1] = 7.0
        gradients(3)[2] += 2.0
        assert torch.equal(stack.weights_SP[1].eq(7.0).sum(), torch.tensor(weights(3)[1].numel()))
        assert stack.gradients_SP[2].sum() == 2.0 * gradients(3)[2].numel()
        stack.weights_SP[1] = 0.0
        stack.gradients_SP.zero_()
        assert not weights(3)[1].any()
        assert not gradients(3).any()
    a_RD, b_OR = stack.cut(stack.weights_SP[1], 0)
    a_RD.fill_(1.0)
    b_OR.fill_(2.0)
    assert stack.a(0)[1].eq(1.0).all()
    assert stack.b(0)[1].eq(2.0).all()


@pytest.mark.parametrize("r", [4, 12, 24])
def test_padding_stays_exactly_zero_through_steps_with_weight_decay(r: int) -> None:
    stack = make_stack(pad_rank(r), layers=(0,))
    adapter = draw_adapter(r, seed=r, layers=(0,))
    # As PEFT begins: B is zero.
    stack.add("0000", stack.flatten({0: (adapter[0][0], torch.zeros_like(adapter[0][1]))}))
    stack.add("0001", stack.flatten(adapter))
    switch = Switch()
    frozen = nn.Linear(*WIDTHS[0]).requires_grad_(False)
    layer = MultiLoraLinear(frozen, number=0, switch=switch, dense_OD=None)
    owners = [RowOwner(stack, slot, scale=2.0) for slot in (0, 0, 1)]
    layout = TrainingLayout(make_segments(owners, device="cpu"), None)
    training = Training(learning_rate=1e-2, weight_decay=0.1, optim="adamw_torch")
    parameters = [nn.Parameter(stack.weights_SP[slot]) for slot in range(2)]
    optimizers = [make_optimizer(parameter, training) for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        stack.gradients_SP.zero_()
        with switch.routing(layout):
            layer(torch.randn(3, 5, WIDTHS[0][0], generator=generator)).square().sum().backward()
        for slot, (parameter, optimizer) in enumerate(zip(parameters, optimizers, strict=True)):
            parameter.grad = stack.gradients_SP[slot]
            optimizer.step()
    assert stack.b(0)[..., :r].abs().min() > 0
    assert not torch.equal(stack.a(0)[0, :r], adapter[0][0])
    assert not stack.a(0)[:, r:].any()
    assert not stack.b(0)[..., r:].any()
