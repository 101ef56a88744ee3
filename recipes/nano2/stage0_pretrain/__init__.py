"""Stage 0: pretraining, from raw text to a base model (arXiv 2508.14444, section 2)."""
