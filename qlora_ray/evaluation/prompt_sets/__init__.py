"""The rows and prompts that models answer: from splits, files and few-shot examples."""
