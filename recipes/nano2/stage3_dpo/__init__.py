"""Stage 3: DPO for tool calling, on the policy's own tries (arXiv 2508.14444, section 3)."""
