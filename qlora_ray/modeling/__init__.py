"""The frozen base, its quantization, and where LoRA attaches."""
