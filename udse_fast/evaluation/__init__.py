"""Quality of enhanced speech: `metrics` scores signals, `command` scores folders and compares systems."""
