"""What gives back what a cut took: levels, closed-form repair, gradients, training."""
