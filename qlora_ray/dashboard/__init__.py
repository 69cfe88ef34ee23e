"""A live page of a sweep, served on this machine alone: what its folder says, sent on as it changes.

`following` reads files as they grow, `sweep_view` turns what they say into the records of `model`, `channel` sends
changes to every open page, and `server` serves. Nothing here imports ray or torch, and nothing writes into the folder.
"""

from qlora_ray.dashboard.command import main, make_parser

__all__ = ["main", "make_parser"]
