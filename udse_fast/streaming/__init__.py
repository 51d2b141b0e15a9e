"""Signals cut into blocks: streams, overlapping blocks, causal blocks."""
