"""Constants for questions over made-up schemas: names, places, codes, numbers, dates."""

from random import Random

from tools.embedded_task import words


def invent_word(rng: Random) -> str:
    """Returns a lower-case word that is in no dictionary, such as "keltora"."""
    return "".join(rng.choice(words.SYLLABLES) for _ in range(rng.randint(2, 3)))


def make_constant(rng: Random, kind: str) -> str:
    """Returns a constant as it stands in a question, and, but for its quotes, in the SQL."""
    if kind == "number":
        return _make_number(rng)
    if kind == "date":
        return make_date(rng, first_year=1990, last_year=2025)
    return _make_category(rng) if kind == "category" else _make_text(rng)


def make_date(rng: Random, *, first_year: int, last_year: int) -> str:
    """Returns an ISO date. Days stop at 28, so that every month has them."""
    return f"{rng.randint(first_year, last_year)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _make_number(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.2:
        return f"{rng.randint(1, 300)}.{rng.randint(1, 99):02d}"
    if draw < 0.6:
        return str(rng.randint(1, 999))
    return str(rng.randint(1, 99) * 10 ** rng.randint(1, 4) + rng.choice((0, 0, rng.randint(0, 99))))


def _make_category(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.25:
        return rng.choice(words.PLACES)
    if draw < 0.6:
        return rng.choice(words.VALUE_WORDS)
    if draw < 0.8:
        return f"{rng.choice(words.VALUE_WORDS)} {_capitalized_noun(rng)}"
    if draw < 0.9:
        return invent_word(rng).capitalize()
    if draw < 0.95:
        return f"1:{rng.randint(2, 99)}"
    return f"{rng.choice('ABCDEFGHJKLMNPRST')}{rng.randint(1, 99)}"


def _make_text(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.25:
        return f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"
    if draw < 0.4:
        return rng.choice(words.LAST_NAMES)
    if draw < 0.6:
        return f"{rng.choice(words.VALUE_WORDS)} {_capitalized_noun(rng)}"
    if draw < 0.75:
        return f"{invent_word(rng).capitalize()} {_capitalized_noun(rng)}"
    if draw < 0.85:
        return f"{rng.choice(words.PLACES)} {_capitalized_noun(rng)}s"
    if draw < 0.95:
        return invent_word(rng).capitalize()
    return f"{rng.randint(1900, 2025)} {invent_word(rng).capitalize()} {_capitalized_noun(rng)}"


def _capitalized_noun(rng: Random) -> str:
    return rng.choice(words.ENTITIES).capitalize()
