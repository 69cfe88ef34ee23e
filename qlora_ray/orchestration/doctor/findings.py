"""What the doctor says: findings, and what they are about beside the nodes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# Whose versions change what a trial computes, or whether Ray's processes understand each other.
COMPARED_PACKAGES = ("ray", "torch", "transformers", "peft", "trl", "bitsandbytes", "optuna", "datasets")


class Status(StrEnum):
    """What a finding means for a sweep."""

    OK = "ok"
    WARNING = "warning"  # a sweep runs, slower or with a risk
    PROBLEM = "problem"  # a sweep does not run, or not on this node


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        check: What was looked at.
        node: Where; empty for a check of all nodes together.
        text: What was found.
        mend: What to do; empty where there is nothing to be done.
    """

    check: str
    status: Status
    text: str
    node: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Situation:
    """What is known beside the nodes.

    Attributes:
        is_cluster: Whether a running cluster is looked at, and not this machine alone.
        asks_for_token: Whether the cluster does; None where there is no cluster.
        shared: The folder for results.
    """

    is_cluster: bool = False
    asks_for_token: bool | None = None
    shared: str = ""
