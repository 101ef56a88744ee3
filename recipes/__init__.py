"""The training recipes, one folder a model, and the parts that every recipe shares."""
