"""Measured figures: printed, never asserted. ``python -m tests.benchmarks`` runs them all."""
