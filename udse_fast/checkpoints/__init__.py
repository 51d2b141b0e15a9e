"""Checkpoints read and written: safetensors, TorchScript, Lightning files, exports."""
