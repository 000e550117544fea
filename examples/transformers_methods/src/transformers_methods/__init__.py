"""Models of Hugging Face's transformers as methods of openvocab."""
