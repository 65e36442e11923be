"""`python -m hf_prune.cli`, where no console script is installed."""

from hf_prune.cli.main import main

main()
