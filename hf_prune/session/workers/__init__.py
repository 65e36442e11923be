"""Work divided among processes or machines: orders, who carries them out, and what becomes of those that are lost."""
