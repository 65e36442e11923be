"""Sources as they are: families, checkpoints, variants, and the classes that transformers loads results by."""
