"""The commands of `udse-fast`, one module each; what is heavy is imported when one runs."""
