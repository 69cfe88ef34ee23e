"""From Examples to token ids: pieces are tokenized one by one and concatenated, so a prompt's ids are the same in
training and in generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlora_ray.data.chat import BeginningChanges
from qlora_ray.data.counts import SplitCounts
from qlora_ray.data.end_tokens import is_end_token
from qlora_ray.data.examples import Example, Piece, divide
from qlora_ray.data.lost_text import find_lost
from qlora_ray.data.templates import Template, render
from qlora_ray.data.tokenized import TokenizedSplit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = "\n"  # see _tokenize_texts
# Rows that are Python objects at once, 60 bytes a token, and not yet Arrow columns, of 9.
BATCH_ROWS = 512


@dataclass(frozen=True)
class TokenizedRows:
    """Some rows of a split as tokens.

    `origins` has for each row the place of the Example that it came from: those that were divided are several rows,
    those that were dropped none. `examples` has the rows themselves: of one that was divided, what became of it.
    """

    rows: TokenizedSplit
    counts: SplitCounts
    origins: list[int]
    examples: list[Example]


def tokenize_split(
    name: str,
    examples: Sequence[Example],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    last_only: bool = False,
    trains_all: bool = False,
    heads: Sequence[str] = (),
) -> tuple[TokenizedSplit, SplitCounts]:
    """Renders and tokenizes a split; rows longer than `max_length` tokens lose their right end.

    Args:
        name: The split's name: `train`, `validation`, `test`.
        examples: Its rows.
        template: How they are rendered.
        tokenizer: The base's tokenizer.
        max_length: `data.max_length`, in tokens.
        last_only: As in `render`: for rows of which only the last answer is asked.
        trains_all: The loss counts whole rows, prompts too (`data.loss: all`).
        heads: The auxiliary heads that the rows have labels for.

    Returns:
        The split and the counts. A row whose answers were cut away completely is dropped and counted.

    Raises:
        DataError: If a row cannot be rendered, or no row keeps a trained token.
    """
    found = tokenize_rows(
        name,
        examples,
        template=template,
        tokenizer=tokenizer,
        max_length=max_length,
        last_only=last_only,
        trains_all=trains_all,
        heads=heads,
    )
    found.counts.check(name, max_length=max_length)
    return found.rows, found.counts


def tokenize_rows(
    name: str,
    examples: Sequence[Example],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    last_only: bool = False,
    trains_all: bool = False,
    heads: Sequence[str] = (),
) -> TokenizedRows:
    """Renders and tokenizes some rows of a split, of which none need be kept; arguments as those of `tokenize_split`.

    Raises:
        DataError: If a row cannot be rendered.
    """
    parts = [
        _tokenize_batch(
            name,
            examples[start : start + BATCH_ROWS],
            template=template,
            tokenizer=tokenizer,
            max_length=max_length,
            last_only=last_only,
            trains_all=trains_all,
            heads=heads,
        )
        for start in range(0, len(examples), BATCH_ROWS)
    ]
    return TokenizedRows(
        TokenizedSplit.joined(name, [part.rows for part in parts]),
        SplitCounts.sum_of([part.counts for part in parts]),
        [number * BATCH_ROWS + origin for number, part in enumerate(parts) for origin in part.origins],
        [example for part in parts for example in part.examples],
    )


def _tokenize_batch(
    name: str,
    examples: Sequence[Example],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    last_only: bool,
    trains_all: bool,
    heads: Sequence[str],
) -> TokenizedRows:
    rendered = _render_rows(examples, template=template, tokenizer=tokenizer, last_only=last_only)
    origins: list[int] = []
    kept: list[Example] = []
    pieces_by_row = rendered.pieces
    first_ids = _tokenize_texts({pieces[0].text for pieces in pieces_by_row}, tokenizer)
    later_texts = {piece.text for pieces in pieces_by_row for piece in pieces[1:]}
    later_ids = _tokenize_texts(later_texts, tokenizer, inside_row=True)
    bos = _bos_ids(tokenizer)
    input_ids: list[list[int]] = []
    masks: list[list[int]] = []
    prompt_ids: list[list[int]] = []
    references: list[str] = []
    alternatives: list[tuple[str, ...]] = []
    labels: list[tuple[int, ...]] = []
    lengths: list[int] = []
    num_truncated = num_dropped = num_without_end = 0
    for example, origin, pieces in zip(rendered.examples, rendered.origins, pieces_by_row, strict=True):
        starts_itself = template.name == "chat" and not example.is_text
        # So does a text that was rendered elsewhere, or a template with the token in it.
        starts_itself |= bool(tokenizer.bos_token) and pieces[0].text.startswith(tokenizer.bos_token)
        ids, mask, prompt_length = _join(
            pieces,
            [first_ids[pieces[0].text], *(later_ids[piece.text] for piece in pieces[1:])],
            [] if starts_itself else bos,
            tokenizer.eos_token_id,
        )
        lengths.append(len(ids))
        num_truncated += len(ids) > max_length
        if not any(mask[:max_length]):
            num_dropped += 1
            continue
        num_without_end += not _ends_in_special_id(ids, mask, tokenizer)
        origins.append(origin)
        kept.append(example)
        input_ids.append(ids[:max_length])
        masks.append([1] * len(input_ids[-1]) if trains_all else mask[:max_length])
        prompt_ids.append([] if example.is_text else ids[:prompt_length])
        references.append(_reference(example, ids[prompt_length:], tokenizer))
        alternatives.append(example.alternatives)
        labels.append(example.labels)
    dropped = {f"answer beyond max_length {max_length}": num_dropped} if num_dropped else {}
    by_head = {head: [row[at] for row in labels] for at, head in enumerate(heads)}
    rows = TokenizedSplit.of(name, input_ids, masks, prompt_ids, references, alternatives, by_head)
    counts = SplitCounts(
        lengths,
        num_truncated,
        dropped,
        num_without_end,
        num_with_special_text=sum(_holds_special_text(example, tokenizer) for example in rendered.examples),
        num_divided=rendered.num_divided,
        lost=rendered.lost,
        num_tokens=rows.num_tokens,
        num_completion_tokens=rows.num_completion_tokens,
    )
    return TokenizedRows(rows, counts, origins, kept)


def _reference(example: Example, answer_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The last answer as text; one that calls tools as the template renders it, decoded as generated answers are."""
    if example.is_text or not example.turns[-1].tool_calls:
        return example.answer
    return str(tokenizer.decode(answer_ids, skip_special_tokens=True)).strip()


@dataclass(frozen=True)
class _Rendered:
    """A split's rows as pieces. A conversation that was divided is a row for each of its answers.

    `origins` has the place of the Example that each was.
    """

    examples: list[Example]
    origins: list[int]
    pieces: list[list[Piece]]
    num_divided: int
    lost: list[str]


def _render_rows(
    examples: Sequence[Example],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    last_only: bool,
) -> _Rendered:
    found = _Rendered([], [], [], 0, [])
    num_divided = 0
    for origin, example in enumerate(examples):
        is_divided = False
        try:
            rows = [(example, render(example, template, tokenizer, last_only=last_only))]
        except BeginningChanges:
            parts = divide(example)
            if last_only or sum(turn.role == "assistant" for turn in example.turns) == 1:
                raise
            rows = [(part, render(part, template, tokenizer, last_only=True)) for part in parts]
            is_divided = True
            # Where only one of its answers is trained it stays a row.
            num_divided += len(parts) > 1
        for row, pieces in rows:
            found.examples.append(row)
            found.origins.append(origin)
            found.pieces.append(pieces)
            lost = find_lost(row, pieces, last_only=last_only or is_divided)
            if lost is not None:
                found.lost.append(f"{row.where}: {lost}")
    return dataclasses.replace(found, num_divided=num_divided)


def _join(
    pieces: list[Piece], ids_by_piece: list[list[int]], bos: list[int], eos_id: int | None
) -> tuple[list[int], list[int], int]:
    ids, mask, prompt_length = list(bos), [0] * len(bos), 0
    for piece, piece_ids in zip(pieces, ids_by_piece, strict=True):
        if piece.is_trained:
            prompt_length = len(ids)
        new = piece_ids + ([eos_id] if piece.ends_answer and eos_id is not None else [])
        ids += new
        mask += [int(piece.is_trained)] * len(new)
    return ids, mask, prompt_length


def _tokenize_texts(
    texts: set[str], tokenizer: PreTrainedTokenizerBase, *, inside_row: bool = False
) -> dict[str, list[int]]:
    """Token ids per text, without special tokens around it.

    SentencePiece-like tokenizers put a space in front of whatever they are given. Inside a row that space would be
    false, so there a text is tokenized behind a newline, whose tokens are then taken off again.
    """
    ordered = sorted(texts)
    adds_space = inside_row and _adds_space(tokenizer)
    anchor_ids = _encode([ANCHOR], tokenizer)[0]
    result: dict[str, list[int]] = {}
    encoded = _encode([ANCHOR + text for text in ordered] if adds_space else ordered, tokenizer) if ordered else []
    for text, ids in zip(ordered, encoded, strict=True):
        if adds_space:
            is_apart = ids[: len(anchor_ids)] == anchor_ids
            ids = ids[len(anchor_ids) :] if is_apart else _encode([text], tokenizer)[0]
        result[text] = ids
    return result


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=False, padding=False, truncation=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    first = tokenizer.tokenize("a")[:1]
    return bool(first) and first[0].startswith(("▁", "Ġ"))


def _bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin token, if this tokenizer puts it in front of plain text by itself."""
    if tokenizer.bos_token_id is None:
        return []
    return [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else []


def _ends_in_special_id(ids: list[int], mask: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return is_end_token(ids[len(mask) - 1 - mask[::-1].index(1)], tokenizer)


def _holds_special_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> bool:
    if example.is_text:  # text that was rendered elsewhere holds them on purpose
        return False
    contents = [turn.full_content for turn in example.turns]
    return any(token in content for token in tokenizer.all_special_tokens for content in contents)
