"""Text and tasks: windows of tokens in disjoint splits, items with their options, and who reads them from where."""
