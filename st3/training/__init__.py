"""The loop and what it moves: optimizer, learning rate, precision, checkpoints, run directory."""
