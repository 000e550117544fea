"""One small CLIP with block-level access, its weights, tokenizer and prompts."""
