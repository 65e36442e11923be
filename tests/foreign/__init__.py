"""Layouts that people really have, rebuilt as tiny models: each is read as stock transformers reads it, or refused."""
