from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import DataError
from qlora_ray.scoring import loss as loss_module
from qlora_ray.scoring.loss import LossResult, evaluate_loss
from tests.unit.evaluation_fixtures import make_llama, make_split, tiny_sizes

LENGTHS = [(5, 3), (20, 12), (1, 1), (9, 0), (3, 30), (7, 7), (12, 2)]


def evaluate(model: torch.nn.Module, split: TokenizedSplit, *, batch_size: int = 3) -> LossResult:
    return evaluate_loss(model, split, batch_size=batch_size, pad_token_id=0, precision="fp32")


def reference_loss(model: torch.nn.Module, split: TokenizedSplit) -> float:
    """Full logits, a row at a time, without padding: what evaluate_loss must equal."""
    model = copy.deepcopy(model).eval()
    total, num_tokens = 0.0, 0
    with torch.no_grad():
        for ids, mask in zip(split.input_ids, split.completion_mask, strict=True):
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            labels = torch.tensor([token if on else -100 for token, on in zip(ids, mask, strict=True)])[1:]
            total += functional.cross_entropy(logits.double(), labels, reduction="sum").item()
            num_tokens += sum(mask[1:])
    return total / num_tokens


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_loss_is_the_token_mean_of_a_plain_full_forward_in_any_batch(batch_size: int) -> None:
    model, split = make_llama(), make_split([*LENGTHS, (0, 6), (0, 1)])
    result = evaluate(model, split, batch_size=batch_size)
    assert result.loss == pytest.approx(reference_loss(model, split), abs=1e-6)
    # A first token is not counted, since nothing predicts it.
    assert result.num_tokens == 3 + 12 + 1 + 30 + 7 + 2 + 5
    assert result.num_rows == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**tiny_sizes(head_dim=16, final_logit_softcapping=0.5))),
        lambda: CohereForCausalLM(CohereConfig(**tiny_sizes(logit_scale=0.0625))),
        lambda: GraniteForCausalLM(GraniteConfig(**tiny_sizes(logits_scaling=8.0))),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=64, n_layer=2, n_head=2, n_positions=64)),
    ],
    ids=["gemma2-caps-logits", "cohere-scales-logits", "granite-divides-logits", "gpt2-learned-positions"],
)
def test_models_that_treat_their_logits_differently_get_their_own_loss(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model, split = make(), make_split(LENGTHS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that caps and scales show in the loss
    assert evaluate(model, split).loss == pytest.approx(reference_loss(model, split), abs=2e-6)


def test_logits_are_computed_for_trained_tokens_only_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = make_llama(), make_split(LENGTHS)
    monkeypatch.setattr(loss_module, "LOGITS_CHUNK_BYTES", 4 * 4 * model.config.vocab_size)
    sizes: list[int] = []
    handle = model.lm_head.register_forward_hook(
        lambda _module, inputs, _output: sizes.append(inputs[0][..., 0].numel())
    )
    result = evaluate(model, split)
    handle.remove()
    assert max(sizes) == 4
    assert sum(sizes) == result.num_tokens
    assert result.loss == pytest.approx(reference_loss(model, split), abs=1e-6)


def test_an_adapter_counts_and_training_goes_on_afterwards_as_if_nothing_had_been() -> None:
    split = make_split(LENGTHS)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    model = get_peft_model(make_llama(), config)
    model.train()
    frozen = model.get_base_model().model.layers[0]
    frozen.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with_adapter = evaluate(model, split)
    assert with_adapter.loss == pytest.approx(reference_loss(model, split), abs=1e-6)
    with model.disable_adapter():
        assert evaluate(model, split).loss != pytest.approx(with_adapter.loss, abs=1e-3)

    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    ids = torch.tensor([split.input_ids[0]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_the_loss_stays(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model, split = make_llama(), make_split(LENGTHS)
    expected = evaluate(model, split, batch_size=1).loss
    sizes: list[int] = []
    forward = model.model.forward

    def forward_with_room_for_two(input_ids: torch.Tensor, **rest: object) -> object:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise error
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(model.model, "forward", forward_with_room_for_two)
    found = evaluate(model, split, batch_size=6)
    assert found.loss == pytest.approx(expected, abs=1e-6)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert (found.batch_size, evaluate(model, split, batch_size=2).batch_size) == (1, 2)


def test_fewer_rows_than_a_batch_say_nothing_against_its_size() -> None:
    assert evaluate(make_llama(), make_split([(4, 3)]), batch_size=6).batch_size == 6


@pytest.mark.parametrize(
    ("error", "sizes"),
    [
        # A row that does not fit alone.
        (torch.OutOfMemoryError("CUDA out of memory"), [4, 2, 1]),
        # What is not of memory halves nothing.
        (RuntimeError("shapes cannot be multiplied"), [4]),
    ],
)
def test_an_error_that_halving_does_not_help_is_raised_and_modes_come_back(
    monkeypatch: pytest.MonkeyPatch, error: Exception, sizes: list[int]
) -> None:
    model = make_llama().train()
    found: list[int] = []

    def forward(input_ids: torch.Tensor, **_: object) -> None:
        found.append(len(input_ids))
        raise error

    monkeypatch.setattr(model.model, "forward", forward)
    with pytest.raises(type(error), match=str(error)):
        evaluate(model, make_split(LENGTHS), batch_size=4)
    assert found == sizes
    assert all(module.training for module in model.modules())


def test_a_split_without_trained_tokens_is_an_error() -> None:
    with pytest.raises(DataError, match="validation must have at least one token that counts"):
        evaluate(make_llama(), make_split([(4, 0), (0, 1)]))


def test_a_loss_that_is_not_a_number_is_returned_as_it_is() -> None:
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    assert evaluate(model, make_split(LENGTHS)).loss != evaluate(model, make_split(LENGTHS)).loss
