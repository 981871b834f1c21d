"""Optimizers: update rules, the one builder that wraps them in megatron-core's, and updates that all ranks skip."""
