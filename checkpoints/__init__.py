"""Tools around released checkpoints: check, convert, import their prompts."""
