"""CMA-ES whose state stands in the study's journal as JSON.

Optuna 5.0's CmaEsSampler pickles its optimizer into the journal, and unpickles it at every proposal: whoever could
write the journal of a folder that somebody else resumes could run code there (optuna.samplers._cmaes,
`_restore_optimizer`).
"""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import cmaes
import numpy as np
import optuna

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ARRAY_KEY = "array"


class JsonCmaEsSampler(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES with the same proposals; a state that is none of ours is as one that is not there."""

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
        # What the base class has just pickled in this process: the one place where it hands the optimizer over.
        optimizer = pickle.loads(bytes.fromhex(optimizer_str))
        return super()._split_optimizer_str(dump_state(optimizer))

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> cmaes.CMA | None:
        for trial in reversed(completed_trials):
            parts = {key: text for key, text in trial.system_attrs.items() if key.startswith(self._attr_key_optimizer)}
            if parts:
                try:
                    return load_state(self._concat_optimizer_attrs(parts))
                except (ValueError, KeyError, TypeError):
                    # A study of an older release, whose pickle is not read.
                    return None
        return None


def dump_state(optimizer: cmaes.CMA) -> str:
    """Returns the state that cmaes gives to pickle, as JSON: numbers, and arrays as lists of them."""
    state = {name: _to_json(value) for name, value in optimizer.__getstate__().items()}
    return json.dumps(state)


def load_state(text: str) -> cmaes.CMA:
    """The inverse of `dump_state`; floats come back bit by bit.

    Raises:
        ValueError: The text is no JSON, or not a state.
        KeyError: It lacks the covariance.
        TypeError: A value is not one that an optimizer has.
    """
    written = json.loads(text)
    if not isinstance(written, dict):
        raise ValueError(f"a state must be a JSON object, got {type(written).__name__}")
    optimizer = cmaes.CMA.__new__(cmaes.CMA)
    optimizer.__setstate__({name: _from_json(value) for name, value in written.items()})
    return optimizer


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {ARRAY_KEY: value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return np.array(value[ARRAY_KEY], dtype=float)
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"a state holds numbers and arrays, got {type(value).__name__}")
    return value
