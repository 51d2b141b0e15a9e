"""Many recordings on many machines: `ray` enhances them with Ray Data."""
