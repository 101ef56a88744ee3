"""The Nemotron-H architecture: the model, its checkpoints, text generation, devices, and the cost of a training run."""
