"""Checks that a stage still gives its recorded numbers; `compare.py` needs only Python, the rest needs pytest."""
