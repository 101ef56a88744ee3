"""Stage 2: reinforcement learning on verifiable instructions (arXiv 2508.14444, section 3)."""
