from __future__ import annotations

import pytest
import torch
from evaluation_fixtures import make_llama, make_split, make_tokenizer
from peft import LoraConfig, get_peft_model

from qlora_ray.errors import DataError
from qlora_ray.scoring.generation import Answer, Answers, answer_in_batches, generate_answers

PROMPTS = make_split([(n, 0) for n in (3, 17, 1, 9, 9, 25, 4)], seed=3).prompt_ids


def generate(model: torch.nn.Module, prompts: list[list[int]] = PROMPTS, **changes: int) -> Answers:
    options = {"max_new_tokens": 12, "batch_size": 4, **changes}
    return generate_answers(model, make_tokenizer(), prompts, precision="fp32", **options)


def greedy_by_hand(model: torch.nn.Module, prompt: list[int], *, num_tokens: int) -> list[int]:
    """One prompt, no cache, no padding: the argmax of the last logits again and again."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
    return ids[len(prompt) :]


def test_answers_are_the_argmax_continuations_in_the_order_of_the_prompts() -> None:
    model, tokenizer = make_llama().eval(), make_tokenizer()
    expected = [
        tokenizer.decode(greedy_by_hand(model, prompt, num_tokens=12), skip_special_tokens=True).strip()
        for prompt in PROMPTS
    ]
    assert len(set(expected)) == len(expected)
    num_cut = sum(2 not in greedy_by_hand(model, prompt, num_tokens=12) for prompt in PROMPTS)
    assert generate(model) == Answers(texts=expected, num_cut_prompts=0, num_short_answers=0, num_cut_answers=num_cut)


def test_a_batch_answers_as_each_prompt_alone() -> None:
    model = make_llama()
    alone = [generate(model, [prompt]).texts[0] for prompt in PROMPTS]
    for batch_size in (1, 3, 100):
        assert generate(model, batch_size=batch_size).texts == alone


def test_the_models_own_sampling_and_penalties_do_not_apply() -> None:
    model = make_llama()
    expected = generate(model)
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.5, repetition_penalty=3.0, num_beams=2)
    model.generation_config.update(no_repeat_ngram_size=1, min_length=50)
    model.config.use_cache = False
    assert generate(model) == expected


def test_an_answer_ends_at_the_first_end_token_of_the_model_or_the_tokenizer() -> None:
    model = make_llama().eval()
    tokens = greedy_by_hand(model, PROMPTS[0], num_tokens=12)
    end = tokens[6]
    before = tokens[: tokens.index(end)]
    model.generation_config.eos_token_id = [2, end]
    tokenizer = make_tokenizer()
    assert generate(model, [PROMPTS[0], PROMPTS[1]]).texts[0] == tokenizer.decode(before).strip()


def test_a_long_prompt_shortens_its_own_answer_only() -> None:
    model = make_llama()
    long = make_split([(60, 0)]).prompt_ids[0]
    answers = generate(model, [*PROMPTS, long])
    assert answers.texts[:-1] == generate(model).texts
    assert answers.texts[-1] == generate(model, [long], max_new_tokens=4).texts[0]
    assert (answers.num_cut_prompts, answers.num_short_answers) == (0, 1)


def test_a_prompt_longer_than_the_model_keeps_its_end_and_is_counted() -> None:
    model = make_llama()
    long = make_split([(90, 0)]).prompt_ids[0]
    answers = generate(model, [long, PROMPTS[0]])
    assert answers.texts == generate(model, [long[-52:], PROMPTS[0]]).texts
    assert (answers.num_cut_prompts, answers.num_short_answers) == (1, 0)


def test_a_long_answer_leaves_a_cut_prompt_half_of_the_model() -> None:
    long = make_split([(90, 0)]).prompt_ids[0]
    answers = generate(make_llama(), [long], max_new_tokens=60)
    assert answers.texts == generate(make_llama(), [long[-32:]], max_new_tokens=32).texts
    assert (answers.num_cut_prompts, answers.num_short_answers) == (1, 1)


def test_a_length_of_the_users_caps_as_positions_do() -> None:
    long = make_split([(50, 0)]).prompt_ids[0]
    capped = generate(make_llama(), [long, PROMPTS[0]], max_length=32)
    assert capped == generate(make_llama(max_position_embeddings=32), [long, PROMPTS[0]])
    assert (capped.num_cut_prompts, capped.num_short_answers) == (1, 0)
    # Beyond the model's positions it raises nothing.
    assert generate(make_llama(), [long], max_length=9999) == generate(make_llama(), [long])


def test_answers_that_had_no_tokens_left_are_counted() -> None:
    model = make_llama().eval()
    tokens = greedy_by_hand(model, PROMPTS[0], num_tokens=12)
    model.generation_config.eos_token_id = [2, tokens[6]]
    assert generate(model, [PROMPTS[0]]).num_cut_answers == 0
    first = tokens.index(tokens[6])
    assert generate(model, [PROMPTS[0]], max_new_tokens=first).num_cut_answers == 1
    # The end token is one of the tokens it may have.
    assert generate(model, [PROMPTS[0]], max_new_tokens=first + 1).num_cut_answers == 0


def test_an_adapter_answers_and_every_module_keeps_its_mode() -> None:
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.9, init_lora_weights=False)
    model = get_peft_model(make_llama(), config).train()
    first = generate(model)
    assert first == generate(model)
    assert all(module.training for module in model.modules())
    with model.disable_adapter():
        assert generate(model).texts == generate(make_llama()).texts
    assert first.texts != generate(make_llama()).texts


def test_a_batch_that_does_not_fit_is_halved_and_answers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama()
    expected = generate(model)
    forward = model.model.forward
    sizes: list[int] = []

    def forward_with_room_for_two(input_ids: torch.Tensor, **rest: object) -> object:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(model.model, "forward", forward_with_room_for_two)
    assert generate(model) == expected
    assert sizes[0] == 4
    assert set(sizes[1:]) == {1, 2}


def test_no_prompts_give_no_answers_and_an_empty_prompt_is_an_error() -> None:
    assert generate(make_llama(), []) == Answers(texts=[], num_cut_prompts=0, num_short_answers=0, num_cut_answers=0)
    with pytest.raises(DataError, match="row 1 must have a prompt to answer"):
        generate(make_llama(), [[5], []])


def answer_all(*, done: set[int] = frozenset(), max_new_tokens: int = 12) -> list[list[Answer]]:
    batches: list[list[Answer]] = []
    answer_in_batches(
        make_llama(),
        make_tokenizer(),
        PROMPTS,
        max_new_tokens=max_new_tokens,
        batch_size=3,
        precision="fp32",
        on_batch=lambda batch: batches.append(list(batch)),
        done=done,
    )
    return batches


def test_batches_are_handed_over_as_they_finish_with_tokens_and_the_way_they_ended() -> None:
    batches = answer_all()
    assert [len(batch) for batch in batches] == [3, 3, 1]
    answers = {answer.row: answer for batch in batches for answer in batch}
    assert [answers[row].text for row in range(len(PROMPTS))] == generate(make_llama()).texts
    model = make_llama().eval()
    for row, prompt in enumerate(PROMPTS):
        tokens = greedy_by_hand(model, prompt, num_tokens=12)
        ended = tokens[-1] == 2
        assert answers[row].finish == ("stop" if ended else "length")
        assert answers[row].num_tokens == len(tokens) - ended


def test_what_is_done_is_not_answered_again_and_the_rest_keeps_its_batches() -> None:
    first, *rest = answer_all()
    assert answer_all(done={answer.row for answer in first}) == rest
    assert answer_all(done=set(range(len(PROMPTS)))) == []
    part = first[0].row
    assert answer_all(done={part})[0] == first[1:]
