"""The command line: flags from the recipe, events to a progress bar, errors to one line and an exit code."""
