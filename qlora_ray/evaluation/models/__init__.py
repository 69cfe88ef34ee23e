"""The models of an evaluation: in which order and how they are loaded, on one base where they share it."""
