"""Engines that train trials in this process: they know torch, not Ray."""
