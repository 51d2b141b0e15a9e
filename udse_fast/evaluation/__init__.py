"""Quality of enhanced speech: `metrics` scores signals, `scoring` files, `report` compares systems."""
