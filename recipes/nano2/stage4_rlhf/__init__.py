"""Stage 4: a reward model of preferences, reinforcement learning from it, and merging."""
