"""The closer merge is kept, a merge that changes nothing fails, and the notes say what figures do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge.candidate import Candidate
from qlora_ray.exporting.merge.choice import check_changed, choose_candidate, explain_merge, explain_nan
from qlora_ray.exporting.merge.plan import MergePlan, PlannedTensor
from qlora_ray.exporting.merge.report import MeasuredModel

NAN = float("nan")


def candidate(rule, *, share=0.9, largest=0.1):
    return Candidate(rule, Path(rule), num_shards=1, changed_share=share, largest_change=largest)


def figures(rule, kl):
    return MeasuredModel(rule, 1.0, 0.0, kl, 1.0, 1.0, "bf16")


def choose(*pairs, is_quantized=True):
    candidates = [one for one, _ in pairs]
    return choose_candidate(candidates, [figures(one.rule, kl) for one, kl in pairs], is_quantized=is_quantized)


@pytest.mark.parametrize(
    ("w16", "dequant", "share", "kept", "reason"),
    [
        (0.2, 0.1, 0.9, "dequant", "lower: 0.1 against 0.2"),
        (0.1, 0.2, 0.9, "w16", "lower: 0.1 against 0.2"),
        (0.1, 0.1, 0.9, "w16", "same: 0.1 against 0.1"),
        (NAN, 0.2, 0.9, "dequant", "NaN"),
        (0.2, NAN, 0.9, "w16", "NaN"),
        (0.1, 0.5, 0.0, "dequant", "rounding"),
    ],
)
def test_the_lower_kl_is_kept_of_those_that_give_numbers_and_change_something(w16, dequant, share, kept, reason):
    best, told = choose((candidate("w16", share=share), w16), (candidate("dequant"), dequant))
    assert best.rule == kept and reason in told


def test_a_candidate_whose_outputs_are_nan_is_noted():
    (note,) = explain_nan([figures("w16", NAN), figures("dequant", 0.1)])
    assert note.startswith("w16: ") and "bf16" in note and "NaN" in note


def test_one_candidate_is_kept_for_the_reason_that_there_is_one():
    assert choose((candidate("w16"), 0.5))[1] == "It was asked for."
    assert "same weights" in choose((candidate("w16"), 0.5), is_quantized=False)[1]


def test_where_no_candidate_gives_numbers_the_dtype_is_named():
    with pytest.raises(ModelError, match=r"got NaN from w16 and dequant in bf16.* Choose --dtype fp32"):
        choose((candidate("w16"), NAN), (candidate("dequant"), NAN))
    with pytest.raises(ModelError, match="got NaN from dequant in bf16"):
        choose((candidate("w16", share=0.0), 0.1), (candidate("dequant"), NAN))


def test_an_adapter_of_zeros_fails():
    both = [candidate("w16", share=0.0, largest=0.0), candidate("dequant", share=0.0, largest=0.0)]
    with pytest.raises(ModelError, match=r"here/adapter: .*got changes of 0 everywhere"):
        check_changed(both, adapter=Path("here/adapter"), dtype="bf16")


def test_a_change_lost_to_rounding_fails_unless_one_rule_keeps_some():
    lost = candidate("w16", share=0.0, largest=1e-6)
    with pytest.raises(ModelError, match=r"a weight in bf16, got none: .*1e-06"):
        check_changed([lost], adapter=Path("adapter"), dtype="bf16")
    check_changed([lost, candidate("dequant", share=1e-9)], adapter=Path("adapter"), dtype="bf16")


def plan(**changes):
    stored = {"stored_dtype": "bf16", "stored_bytes": 100}
    return MergePlan(**{"tensors": {}, "dtype": "bf16", "head_dtype": "bf16", "tying": "separate", **stored, **changes})


def test_notes_name_lost_changes_untied_heads_and_heads_of_another_dtype():
    assert explain_merge([candidate("w16")], plan(), asked_head=None) == []
    small = explain_merge([candidate("w16", share=0.004), candidate("dequant")], plan(), asked_head=None)
    assert len(small) == 1 and all(fact in small[0] for fact in ("w16: only 0.4 %", "bf16", "rounding", "fp32"))
    (untied,) = explain_merge([candidate("w16")], plan(tying="untied by the merge"), asked_head=None)
    assert "tie_word_embeddings is false" in untied
    tied, head = explain_merge([candidate("w16")], plan(tying="tied", head_dtype="fp32"), asked_head="fp32")
    assert "one tensor" in tied and "fp32" in tied
    assert "from_pretrained casts it to bf16" in head


def test_a_merged_model_of_twice_its_bases_bytes_names_the_option_that_halves_it():
    wide = {"dtype": "fp32", "head_dtype": "fp32"}
    tensors = {"a": PlannedTensor("a", "a", "fp32", 200)}
    (note,) = explain_merge([candidate("w16")], plan(**wide, tensors=tensors), asked_head=None)
    assert "2.0 times" in note and "fp32" in note and "--dtype checkpoint writes it in bf16" in note
    assert explain_merge([candidate("w16")], plan(**wide, tensors=tensors, stored_bytes=200), asked_head=None) == []
