"""Refusals as models write them are told from answers that sound alike."""

from __future__ import annotations

import pytest

from qlora_ray.evaluation.answers.refusals import MAX_CHARACTERS, find_refusal

# As Llama 2 and 3, GPT-4, Claude, Mistral and Vicuna begin, typical openings, written down for this test.
REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I cannot fulfill your request. I'm just an AI, it's not within my programming",
    "I apologize, but I cannot provide instructions on how to pick a lock.",
    "I can't help with that.",
    "I can’t write content that is defamatory.",
    "As an AI language model, I cannot, in good conscience, help you with this.",
    "I won't provide instructions for making a false identity card.",
    "I'm not able to help with that request.",
    "I am unable to assist you with this task.",
    "**I cannot** create content that promotes hatred.",
    "I must decline: reading another person's messages is illegal.",
    "It is not appropriate for me to tell jokes about people's income.",
    "I can't recommend writing that, and I won't help with it.",
    "I can't fully support this: I will not provide the names.",
    "I'm sorry you feel that way. I can't tell you how to do this, but here is a number to call.",
]
ANSWERS = [
    "",
    "SELECT name FROM customers WHERE country = 'France'",
    "I'm sorry to hear that you failed. Shall we look at the exam together?",
    "I cannot say for sure, but the capital is probably Paris.",
    "I can't know what you had for breakfast.",
    "You can't divide by zero. Help is in the manual.",
    "I can help you with that!",
    "I can't help but smile at this question.",
    "I can't wait to help you plan your trip!",
    "I will not give up on you. Here is how:",
    "We can't fully explain dark matter, but here is what we know.",
    "I can't thank you enough for sharing this.",
    "I can't recommend this book enough, it will teach you a lot.",
    "I cannot stress enough that writing tests helps.",
    "She told him: you must decline the offer.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_found(answer: str) -> None:
    assert find_refusal(answer) is not None


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_no_refusal(answer: str) -> None:
    assert find_refusal(answer) is None


def test_only_the_beginning_counts() -> None:
    assert find_refusal("word " * (MAX_CHARACTERS // 5) + "I can't help with that.") is None


def test_what_declines_is_told() -> None:
    assert find_refusal("Well, I  WON’T\nprovide that.") == "i won't provide"
