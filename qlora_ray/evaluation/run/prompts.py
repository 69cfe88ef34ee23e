"""One model on one prompt set: losses and answers, written to the answer log as they come, and scored from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_ray.config.schema import Evaluate
from qlora_ray.console import Console
from qlora_ray.evaluation.models.loading import LoadedModel
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.formats import format_duration
from qlora_ray.modeling.auxiliary_heads import TrainedHead
from qlora_ray.scoring.generation import Answer, answer_in_batches
from qlora_ray.scoring.heads import HeadScorer
from qlora_ray.scoring.inference import longest_first, pad_token_of
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.scoring.sampling import choose_sampling

# Ours: batches between two writes of losses. Each call of evaluate_loss looks at the head first, which costs little
# beside this many batches.
LOSS_BATCHES_PER_WRITE = 8
# Off a terminal, where a progress line cannot live, a line is printed at each of this many parts of the answers.
NUM_PROGRESS_LINES = 4


@dataclass(frozen=True)
class PromptRun:
    """Runs models on prompt sets.

    Args:
        loss_batch_size: Rows of a micro-batch where only losses are computed.
        is_live: Whether the console is a terminal.
        heads: The adapter's auxiliary heads, which are asked of adapter and merged model.
    """

    answer_log: AnswerLog
    console: Console
    evaluate: Evaluate
    loss_batch_size: int
    is_live: bool
    heads: Sequence[TrainedHead] = ()

    def is_done(self, model: str, prompts: PromptSet) -> bool:
        """Whether every loss and answer of the set is written."""
        return not self._rows_without_loss(model, prompts) and not self._rows_without_answer(model, prompts)

    def run(self, loaded: LoadedModel, prompts: PromptSet) -> float | None:
        """Asks what is left of the set, losses first.

        Returns:
            Answers per second; None if nothing was left to answer.

        Raises:
            DataError: If a prompt is empty.
            RuntimeError, MemoryError: If one row alone does not fit the device (`device_memory.is_out_of_memory`).
        """
        num_before = len(self.answer_log.read_answers(loaded.name, prompts.name))
        if 0 < num_before < prompts.num_answered:
            self.console.event(f"{loaded.name}  {prompts.name}  goes on after {num_before} answers")
        self._measure_losses(loaded, prompts)
        started = time.monotonic()
        num_new = self._answer(loaded, prompts)
        seconds = time.monotonic() - started
        self.console.end_progress()
        return num_new / seconds if num_new else None

    def _measure_losses(self, loaded: LoadedModel, prompts: PromptSet) -> None:
        left = self._rows_without_loss(loaded.name, prompts)
        if not left:
            return
        rows = prompts.rows
        heads = [] if loaded.name == "base" else self.heads
        num_rows = len(rows)
        per_write = self.loss_batch_size * LOSS_BATCHES_PER_WRITE
        size = self.loss_batch_size
        order = longest_first(rows.input_ids, list(range(num_rows)))
        for start in range(0, num_rows, per_write):
            # The same chunks whatever is done, so that a row shares its batch with the same rows.
            chunk = [row for row in order[start : start + per_write] if row in left]
            if not chunk:
                continue
            lines: list[dict[str, Any]] = [
                {"row": row, "nll": 0.0, "tokens": 0} for row in chunk if not any(rows.completion_mask[row][1:])
            ]
            trained = [row for row in chunk if any(rows.completion_mask[row][1:])]
            if trained:
                part = rows.take(trained)
                scorer = HeadScorer(heads, part)
                found = evaluate_loss(
                    loaded.model,
                    part,
                    batch_size=size,
                    pad_token_id=pad_token_of(loaded.tokenizer),
                    precision=loaded.precision,
                    on_hidden=scorer.observe if heads else None,
                )
                # Halved for lack of memory: batches stay small, instead of failing again in each chunk.
                size = found.batch_size
                lines += [
                    {"row": row, "nll": nll, "tokens": tokens, **_head_line(scorer, at)}
                    for at, (row, nll, tokens) in enumerate(zip(trained, found.row_nll, found.row_tokens, strict=True))
                ]
            self.answer_log.add_losses(loaded.name, prompts.name, lines)
            num_done = min(start + per_write, num_rows)
            self._show(f"{loaded.name}  {prompts.name}  loss of {num_done} of {num_rows} rows", num_done == num_rows)

    def _answer(self, loaded: LoadedModel, prompts: PromptSet) -> int:
        """Answers what has no answer yet; returns how many that were."""
        left = self._rows_without_answer(loaded.name, prompts)
        if not left:
            return 0
        tell = self._make_teller(loaded.name, prompts, num_left=len(left))
        decode = loaded.tokenizer.decode

        def keep(batch: Sequence[Answer]) -> None:
            lines = [
                {
                    "row": answer.row,
                    "id": prompts.ids[answer.row],
                    "prompt": str(decode(prompts.rows.prompt_ids[answer.row])),
                    "answer": answer.text,
                    "reference": prompts.rows.references[answer.row] if prompts.has_references else None,
                    "num_tokens": answer.num_tokens,
                    "finish": answer.finish,
                }
                for answer in batch
            ]
            self.answer_log.add_answers(loaded.name, prompts.name, lines)
            tell(len(batch))

        answer_in_batches(
            loaded.model,
            loaded.tokenizer,
            prompts.rows.prompt_ids[: prompts.num_answered],
            max_new_tokens=prompts.max_new_tokens,
            batch_size=self.evaluate.batch_size,
            precision=loaded.precision,
            on_batch=keep,
            done=set(range(prompts.num_answered)) - left,
            sampling=choose_sampling(self.evaluate),
            max_length=self.evaluate.max_length,
        )
        return len(left)

    def _make_teller(self, model: str, prompts: PromptSet, *, num_left: int) -> Callable[[int], None]:
        """Returns what is called with the size of each finished batch, and shows how far the answers are."""
        started, total = time.monotonic(), prompts.num_answered
        done = total - num_left

        def tell(num_new: int) -> None:
            nonlocal done
            before, done = done, done + num_new
            rate = (done - total + num_left) / max(time.monotonic() - started, 1e-9)
            remaining = format_duration((total - done) / rate)
            text = f"{model}  {prompts.name}  {done} of {total} answered, {rate:.1f} rows/s, {remaining} left"
            parts = [count * NUM_PROGRESS_LINES // total for count in (before, done)]
            self._show(text, parts[0] != parts[1] and done < total)

        return tell

    def _show(self, text: str, is_notable: bool) -> None:
        """Puts the text in the progress line; off a terminal, prints it if it is worth a line."""
        if self.is_live:
            self.console.progress(text)
        elif is_notable:
            self.console.event(text)

    def _rows_without_loss(self, model: str, prompts: PromptSet) -> set[int]:
        if not prompts.has_references:
            return set()
        return set(range(len(prompts.rows))) - set(self.answer_log.read_losses(model, prompts.name))

    def _rows_without_answer(self, model: str, prompts: PromptSet) -> set[int]:
        return set(range(prompts.num_answered)) - set(self.answer_log.read_answers(model, prompts.name))


def _head_line(scorer: HeadScorer, row: int) -> dict[str, dict[str, tuple[int, float]]]:
    """What a line of losses says of the heads' answers to a row; nothing where it has no label."""
    answers = {head: found[row] for head, found in scorer.found.items() if row in found}
    return {"heads": answers} if answers else {}
