"""The executor: the Ray actor around one engine on one device, and what it does without Ray."""
