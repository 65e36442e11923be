"""Strangers' files, made up and spoiled: whatever they say, a reader gives a value or one sentence."""
