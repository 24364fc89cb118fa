"""What committed entries mean: replicated state machines. README.md says what is in which file."""
