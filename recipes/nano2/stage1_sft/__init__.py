"""Stage 1: supervised fine-tuning, from the base model to one that thinks, answers and calls tools (2508.14444, 3)."""
