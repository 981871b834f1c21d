"""Sharded checkpoints over megatron-core's dist_checkpointing: atomic, verified, readable under any layout."""
