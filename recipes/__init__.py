"""The training recipes, one folder per model, and the parts that all recipes share."""
