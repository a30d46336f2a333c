"""Benchmarks: ratios measured in one run, behind a correctness gate. Never part of the tests."""
