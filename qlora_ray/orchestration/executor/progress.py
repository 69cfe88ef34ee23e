"""How an executor shows that it gets somewhere: a counter that moves with every forward pass of its base."""

from __future__ import annotations

import threading
from typing import Any


class ProgressCounter:
    """Counts bits of work. A long evaluation moves it as training does; an engine that hangs does not.

    Attributes:
        count: How much was done so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def tick(self) -> None:
        """Counts one; from any thread."""
        with self._lock:
            self.count += 1

    def count_forwards(self, model: Any) -> None:
        """Counts every forward pass of a model: micro-batches, evaluated batches, generated tokens.

        By its embedding, since wrappers such as PEFT's call the model's own `forward` and pass its hooks by.

        Args:
            model: A model of transformers.
        """
        model.get_input_embeddings().register_forward_pre_hook(lambda *_: self.tick())
