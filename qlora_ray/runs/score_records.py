"""Scores as far as reports and model cards read them: best/scores.json, evaluation.json, merge_report.json.

They are read by `runs.typed_json.parse_record`: what a file does not say is None, or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HeadRecord:
    """What an auxiliary head is worth, as scoring.heads.HeadScores writes it."""

    accuracy: float | None = None
    macro_f1: float | None = None
    loss: float | None = None
    majority: float | None = None
    num_rows: int | None = None


@dataclass(frozen=True)
class ScoreRecord:
    """One model on one set of rows, as scoring.scores.Scores writes it.

    Attributes:
        model: Which one, in an evaluation.
        prompts: The prompt set, in an evaluation.
        loss: In nats per trained token.
        details: Further figures of the metrics that have some, by metric and name.
        sampling: How answers were drawn; empty where they are greedy.
        heads: What the auxiliary heads are worth, by name.
    """

    model: str | None = None
    prompts: str | None = None
    loss: float | None = None
    perplexity: float | None = None
    num_rows: int | None = None
    num_answers: int | None = None
    num_cut_answers: int | None = None
    num_settled_answers: int | None = None
    num_looping_answers: int | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    heads: Mapping[str, HeadRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class BestScores:
    """best/scores.json: the verdict, and winner and base on its rows.

    Attributes:
        verdict: As scoring.verdict.Verdict writes it; empty in sweeps from before there was one.
        rescored: The best trials on the validation rows, by trial: their loss, and answers in sweeps of older versions.
    """

    trial: str | None = None
    verdict: Mapping[str, Any] = field(default_factory=dict)
    winner: ScoreRecord | None = None
    base: ScoreRecord | None = None
    rescored: Mapping[str, ScoreRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredRows:
    """The rows that an evaluation was on, why these, and their fingerprint as a data report has it."""

    num_rows: int | None = None
    split: str | None = None
    reason: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class EvaluationTarget:
    """What was evaluated: a sweep, a bundle, an adapter or a model (`kind`), and the hash of its adapter."""

    kind: str | None = None
    trial: str | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class _EvaluateSettings:
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Settings:
    evaluate: _EvaluateSettings = field(default_factory=_EvaluateSettings)


@dataclass(frozen=True)
class HarnessRecord:
    """Tasks of the lm-evaluation-harness; what its lines say stands in the comparisons."""

    comparisons: tuple[Mapping[str, Any], ...] = ()
    lines: tuple[Any, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerExports:
    """Where answers were exported to."""

    warnings: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationRecord:
    """evaluation.json: base, adapter and merged model on the same rows.

    Attributes:
        comparisons: As scoring.comparison.Comparison writes them, with the names of the models and of the prompt set.
        models: How each model was loaded.
    """

    target: EvaluationTarget = field(default_factory=EvaluationTarget)
    rows: ScoredRows = field(default_factory=ScoredRows)
    settings: _Settings = field(default_factory=_Settings)
    scores: tuple[ScoreRecord, ...] = ()
    comparisons: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    models: Mapping[str, Any] = field(default_factory=dict)
    exports: AnswerExports = field(default_factory=AnswerExports)
    lm_eval: HarnessRecord = field(default_factory=HarnessRecord)


@dataclass(frozen=True)
class MergedModel:
    """One way of merging beside the trained model: KL in nats per token, agreements and changed weights as shares."""

    name: str | None = None
    dtype: str | None = None
    loss: float | None = None
    loss_difference: float | None = None
    kl: float | None = None
    token_agreement: float | None = None
    answer_agreement: float | None = None
    changed_share: float | None = None
    num_bytes: int | None = None


@dataclass(frozen=True)
class MergeRecord:
    """merge_report.json: which way of merging was kept, and why."""

    rule: str | None = None
    reason: str | None = None
    models: tuple[MergedModel, ...] = ()
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
