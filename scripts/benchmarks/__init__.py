"""The tables that scripts/benchmark.py makes, a file for each, and what they share."""
