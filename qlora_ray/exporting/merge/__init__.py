"""The measured merge: two ways to add an adapter to its base, and the one that is closer to what was trained."""
