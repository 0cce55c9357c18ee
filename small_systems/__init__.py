"""The small systems that ship: recipes, tokenizers, pre-training, building."""
