"""Talkers and noise out of one recording: which sources there are, blocks, and recordings of any length."""
