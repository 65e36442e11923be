"""One run: its parents and evidence opened, its genomes scored, its baselines played, its winner chosen."""
