"""What st3 does where something is wrong, counted."""
