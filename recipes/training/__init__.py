"""What every training loop uses: the record of a run, batches, states to resume from, curves.

Nothing here calls a loop or computes a loss, a gradient or a schedule. Each stage writes its own loop.
"""
