"""Measures of a language model: likelihood of text, n-gram baselines, multiple choice, recall, exercises."""
