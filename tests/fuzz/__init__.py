"""Fuzzers: README.md says what each one feeds, and how to run them."""
