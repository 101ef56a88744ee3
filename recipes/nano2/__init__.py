"""The recipe for Nemotron Nano 2 (arXiv 2508.14444): one folder per stage, in the order of training."""
