"""What a result can do, told: measurements, tables, figures, the card."""
