"""Audio on its way in and out: formats, files, sample rates, spectrograms."""
