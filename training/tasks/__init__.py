"""Tasks of the small systems. Each module offers PROMPTS, generate, pretraining_examples and OPERATOR_COUNTS."""
