"""Many LoRA adapters on one frozen base, in one forward and backward pass. Knows no trial and no optimizer."""
