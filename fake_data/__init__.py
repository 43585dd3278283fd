"""Seeded inputs for the pipeline and the tests; framework-free."""
