"""Experiment trackers: each trial as a run of TensorBoard, wandb, MLflow or Trackio, by their own libraries."""
