"""From a blueprint to tensors: the only place where weights are combined, written and certified."""
