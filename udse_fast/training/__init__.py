"""`udse-fast train`: a score network from a folder of clean speech, of noise, or both."""
