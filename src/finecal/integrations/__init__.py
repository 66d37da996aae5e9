"""finecal in the training loops of others: one module per ecosystem, imported by name, each with its own extra."""
