"""KL, loss and agreement between models are what their definitions say, on the rows that are measured."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from qlora_ray.errors import DataError, ModelError
from qlora_ray.exporting.merge import measure as merge_measure
from qlora_ray.exporting.merge.measure import Runner, choose_rows, kl_divergence, measure_model, measure_reference
from qlora_ray.scoring.generation import generate_answers
from qlora_ray.scoring.loss import evaluate_loss
from tests.unit.evaluation_fixtures import make_llama, make_split, make_tokenizer, with_columns

pytestmark = pytest.mark.slow

VOCAB_SIZE = 259
SPLIT = make_split([(4, 6), (9, 3), (5, 0), (7, 2)])


@pytest.fixture(scope="module")
def model():
    return make_llama()


@pytest.fixture(scope="module")
def moved(model):
    """The same model with every weight moved a little."""
    other = copy.deepcopy(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return other


def run(model):
    return Runner(model, make_tokenizer(), "fp32")


@pytest.fixture
def reference(model, tmp_path):
    """The model itself, measured on all rows."""
    rows = choose_rows(SPLIT, vocab_size=VOCAB_SIZE)
    return measure_reference(run(model), rows, name="trained", dtype="nf4", folder=tmp_path)


def test_kl_is_scipys():
    first, second = torch.randn(5, 40).log_softmax(-1), torch.randn(5, 40).log_softmax(-1)
    expected = entropy(first.exp().double().numpy(), second.exp().double().numpy(), axis=1)
    np.testing.assert_allclose(kl_divergence(first, second).numpy(), expected, rtol=1e-5)


IMPOSSIBLE = torch.tensor([[0.5, 0.5, 0.0]]).log()


def test_kl_is_zero_of_equals_even_where_a_token_is_impossible_and_infinite_where_only_one_can_say_it():
    narrow = torch.tensor([[1.0, 0.0, 0.0]]).log()
    assert kl_divergence(IMPOSSIBLE, IMPOSSIBLE).item() == 0
    assert kl_divergence(narrow, IMPOSSIBLE).item() == pytest.approx(np.log(2))
    assert kl_divergence(IMPOSSIBLE, narrow).item() == np.inf


def test_kl_of_a_model_that_gives_no_numbers_is_none():
    expected = torch.randn(3, 5).log_softmax(-1)
    found = expected.clone()
    found[1] = torch.nan
    assert kl_divergence(expected, found).isnan().tolist() == [False, True, False]
    # Not even where a token that cannot be said is the only one without a number.
    assert kl_divergence(IMPOSSIBLE, torch.tensor([[-1.0, -1.0, torch.nan]])).isnan().all()


def broken_copy(model):
    """The same model with weights that overflow."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.fill_(torch.inf)
    return other


def test_a_model_whose_outputs_are_nan_is_close_to_none_and_no_reference(model, reference, tmp_path):
    broken = run(broken_copy(model))
    found = measure_model(broken, reference, name="broken", dtype="fp16")
    assert np.isnan(found.kl) and np.isnan(found.loss)
    rows = choose_rows(SPLIT, vocab_size=VOCAB_SIZE)
    with pytest.raises(ModelError, match=r"nf4 \+ adapter must give numbers, got NaN .* validation"):
        measure_reference(broken, rows, name="nf4 + adapter", dtype="nf4", folder=tmp_path)


def test_rows_without_an_answer_are_left_out_and_answers_are_cut(monkeypatch):
    monkeypatch.setattr(merge_measure, "MAX_POSITIONS_PER_ROW", 4)
    rows = choose_rows(SPLIT, vocab_size=VOCAB_SIZE)
    assert rows.input_ids == [SPLIT.input_ids[row] for row in (0, 1, 3)]
    assert rows.positions == [[4, 5, 6, 7], [9, 10, 11], [7, 8]]
    assert rows.num_answers == 3
    assert rows.reference_bytes == 9 * VOCAB_SIZE * 4


def test_rows_and_positions_stop_at_their_bounds(monkeypatch):
    monkeypatch.setattr(merge_measure, "MAX_ROWS", 2)
    assert len(choose_rows(SPLIT, vocab_size=VOCAB_SIZE).positions) == 2
    monkeypatch.setattr(merge_measure, "MAX_REFERENCE_BYTES", 7 * VOCAB_SIZE * 4)
    assert choose_rows(SPLIT, vocab_size=VOCAB_SIZE).positions == [[4, 5, 6, 7, 8, 9], [9]]


def test_a_split_without_answers_cannot_measure_a_merge():
    with pytest.raises(DataError, match="validation must have a row with an answer"):
        choose_rows(make_split([(5, 0)]), vocab_size=VOCAB_SIZE)


def test_the_reference_is_as_far_from_itself_as_rounding(model, reference):
    again = measure_model(run(model), reference, name="again", dtype="fp32")
    assert (reference.model.name, reference.model.dtype, reference.model.kl) == ("trained", "nf4", 0.0)
    assert (again.kl, again.loss_difference, again.token_agreement, again.answer_agreement) == (0.0, 0.0, 1.0, 1.0)


def test_figures_of_another_model_are_those_of_whole_forwards(model, moved, reference):
    rows = choose_rows(SPLIT, vocab_size=VOCAB_SIZE)
    found = measure_model(run(moved), reference, name="moved", dtype="fp32")

    kls, same = [], []
    for ids, positions in zip(rows.input_ids, rows.positions, strict=True):
        before = [at - 1 for at in positions]
        with torch.no_grad():
            one, other = (net(torch.tensor([ids])).logits[0, before] for net in (model, moved))
        kls += list(entropy(one.softmax(-1).numpy(), other.softmax(-1).numpy(), axis=1))
        same += (one.argmax(-1) == other.argmax(-1)).tolist()
    assert found.kl == pytest.approx(np.mean(kls), rel=1e-3)
    assert found.token_agreement == pytest.approx(np.mean(same))
    assert 0 < found.token_agreement < 1

    # In the same batches: their difference is small beside what rows of another batch round otherwise.
    batch_size = merge_measure.BATCH_SIZE
    losses = [
        evaluate_loss(net, SPLIT, batch_size=batch_size, pad_token_id=0, precision="fp32").loss
        for net in (model, moved)
    ]
    assert found.loss == pytest.approx(losses[1])
    assert found.loss_difference == pytest.approx(losses[1] - losses[0])
    answers = [
        generate_answers(
            net, make_tokenizer(), rows.prompt_ids, max_new_tokens=64, batch_size=3, precision="fp32"
        ).texts
        for net in (model, moved)
    ]
    assert found.answer_agreement == np.mean([a == b for a, b in zip(*answers, strict=True)])


def test_an_answer_is_ended_once_it_is_another_one_and_no_figure_changes(model, moved, reference):
    rows = choose_rows(SPLIT, vocab_size=VOCAB_SIZE)
    whole = run(moved).answers(rows)
    same, other = reference.answers[0], "#" * 10
    expected = [whole[0], other, other]
    ended = run(moved).answers(rows, expected=expected)
    assert ended[0] == whole[0] != same
    for answer, full in zip(ended[1:], whole[1:], strict=True):
        # As many tokens as the other one has, and not the 64 that it could have.
        assert full.startswith(answer) and answer != other and len(answer) < len(full) / 2


def test_rows_without_prompts_are_measured_without_answers(model, tmp_path):
    split = with_columns(SPLIT, prompt_ids=[[]] * 4)
    rows = choose_rows(split, vocab_size=VOCAB_SIZE)
    reference = measure_reference(run(model), rows, name="trained", dtype="fp32", folder=tmp_path)
    found = measure_model(run(model), reference, name="again", dtype="fp32")
    assert reference.model.answer_agreement is found.answer_agreement is None
    assert found.kl == 0
