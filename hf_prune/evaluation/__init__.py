"""What a candidate is worth: all candidates of a generation through the layers side by side."""
