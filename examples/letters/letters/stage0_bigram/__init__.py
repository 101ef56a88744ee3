"""Stage 0: from a text file to a bigram model, evaluated on held-out lines."""
