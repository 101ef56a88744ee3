"""Stage 1: supervised fine-tuning, from base model to one that thinks and uses tools (arXiv 2508.14444, section 3)."""
