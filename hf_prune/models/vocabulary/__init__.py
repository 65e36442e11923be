"""Tokens and their rows: matched between models, and fewer of them in a tokenizer and settings that number these alone.

Nothing here loads torch.
"""
