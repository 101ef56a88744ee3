"""Checks that a stage still gives its recorded numbers; the comparison itself (`compare.py`) needs no pytest."""
