"""The `single` engine: one trial at a time, through TRL's SFTTrainer."""
