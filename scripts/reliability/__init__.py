"""Faults injected into real runs: what docs/reliability.md tells."""
