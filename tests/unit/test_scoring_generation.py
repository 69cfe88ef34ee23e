from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from qlora_ray.errors import DataError
from qlora_ray.scoring.generation import Answer, Answers, answer_in_batches, generate_answers
from qlora_ray.scoring.sampling import Sampling
from tests.unit.evaluation_fixtures import make_llama, make_split, make_tokenizer

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


def test_answers_are_the_argmax_continuations_in_the_order_of_the_prompts_in_any_batch() -> None:
    model = make_llama().eval()
    continued = [greedy_by_hand(model, prompt, num_tokens=12) for prompt in PROMPTS]
    texts = [make_tokenizer().decode(tokens, skip_special_tokens=True).strip() for tokens in continued]
    assert len(set(texts)) == len(texts)
    expected = Answers(texts, ["stop" if 2 in tokens else "length" for tokens in continued], 0, 0)
    for batch_size in (1, 4, 100):
        assert generate(model, batch_size=batch_size) == expected


def test_the_models_own_sampling_and_penalties_do_not_apply() -> None:
    model = make_llama()
    expected = generate(model)
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.5, repetition_penalty=3.0, num_beams=2)
    model.generation_config.update(no_repeat_ngram_size=1, min_length=50)
    model.config.use_cache = False
    assert generate(model) == expected


def test_an_answer_ends_where_the_chat_template_ends_it() -> None:
    model, tokenizer = make_llama().eval(), make_tokenizer()
    tokens = greedy_by_hand(model, PROMPTS[0], num_tokens=12)
    end = tokens[6]
    word = str(tokenizer.convert_ids_to_tokens(end))
    tokenizer.add_special_tokens({"additional_special_tokens": [word]})
    assert tokenizer.convert_tokens_to_ids(word) == end != tokenizer.eos_token_id
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}END{% endif %}"
    tokenizer.chat_template = (tokenizer.chat_template + "{% endfor %}").replace("END", word)
    answers = generate_answers(model, tokenizer, [PROMPTS[0]], max_new_tokens=12, batch_size=1, precision="fp32")
    assert answers.texts == [tokenizer.decode(tokens[: tokens.index(end)], skip_special_tokens=True).strip()]
    assert answers.finishes == ["stop"]


def test_an_answer_ends_at_the_first_end_token_of_the_model_or_the_tokenizer_and_is_cut_without() -> None:
    model = make_llama().eval()
    tokens = greedy_by_hand(model, PROMPTS[0], num_tokens=12)
    end = tokens[6]
    before = tokens[: tokens.index(end)]
    model.generation_config.eos_token_id = [2, end]
    ended = generate(model, [PROMPTS[0]])
    assert (ended.texts, ended.num_cut_answers) == ([make_tokenizer().decode(before).strip()], 0)
    # The end token is one of the tokens that an answer may have.
    for max_new_tokens, num_cut in ((len(before), 1), (len(before) + 1, 0)):
        assert generate(model, [PROMPTS[0]], max_new_tokens=max_new_tokens).num_cut_answers == num_cut


@pytest.mark.parametrize(
    ("num_tokens", "max_new_tokens", "kept", "answered", "counts"),
    [
        # Of 64 positions: a prompt of 60 leaves four for its answer.
        (60, 12, 60, 4, (0, 1)),
        # A prompt longer than the model keeps its end.
        (90, 12, 52, 12, (1, 0)),
        # A long answer leaves a cut prompt half of the model.
        (90, 60, 32, 32, (1, 1)),
    ],
)
def test_a_long_prompt_is_cut_or_shortens_its_own_answer_and_is_counted(
    num_tokens: int, max_new_tokens: int, kept: int, answered: int, counts: tuple[int, int]
) -> None:
    model, short = make_llama(), PROMPTS[0:3:2]
    long = make_split([(num_tokens, 0)]).prompt_ids[0]
    answers = generate(model, [*short, long], max_new_tokens=max_new_tokens)
    assert answers.texts[:-1] == generate(model, short, max_new_tokens=max_new_tokens).texts
    assert answers.texts[-1] == generate(model, [long[-kept:]], max_new_tokens=answered).texts[0]
    assert (answers.num_cut_prompts, answers.num_short_answers) == counts


def test_a_length_of_the_users_caps_as_positions_do() -> None:
    long = make_split([(50, 0)]).prompt_ids[0]
    capped = generate(make_llama(), [long, PROMPTS[0]], max_length=32)
    assert capped == generate(make_llama(max_position_embeddings=32), [long, PROMPTS[0]])
    assert (capped.num_cut_prompts, capped.num_short_answers) == (1, 0)
    # Beyond the model's positions it raises nothing.
    assert generate(make_llama(), [long], max_length=9999) == generate(make_llama(), [long])


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
    assert generate(make_llama(), []) == Answers([], [], num_cut_prompts=0, num_short_answers=0)
    with pytest.raises(DataError, match="row 1 must have a prompt to answer"):
        generate(make_llama(), [[5], []])


def answer_all(*, done: set[int] = frozenset(), sampling: Sampling | None = None) -> list[list[Answer]]:
    batches: list[list[Answer]] = []
    answer_in_batches(
        make_llama(),
        make_tokenizer(),
        PROMPTS,
        max_new_tokens=12,
        batch_size=3,
        precision="fp32",
        on_batch=lambda batch: batches.append(list(batch)),
        done=done,
        sampling=sampling,
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


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, top_p=1.0, seed=7)])
def test_what_is_done_is_not_answered_again_and_the_rest_keeps_its_batches(sampling: Sampling | None) -> None:
    first, *rest = answer_all(sampling=sampling)
    assert answer_all(done={answer.row for answer in first}, sampling=sampling) == rest
    assert answer_all(done=set(range(len(PROMPTS))), sampling=sampling) == []
    assert answer_all(done={first[0].row}, sampling=sampling)[0] == first[1:]
