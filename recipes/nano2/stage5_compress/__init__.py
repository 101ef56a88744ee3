"""Stage 5: Minitron compression: prune the aligned model until it fits, and distill it back."""
