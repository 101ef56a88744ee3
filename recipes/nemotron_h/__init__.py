"""The architecture that every recipe trains: model, checkpoints, sampling, and what a run would take."""
