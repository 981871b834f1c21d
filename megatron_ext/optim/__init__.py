"""Optimizers: the update rules (`adamw`, `sgd`) and the one builder that wraps them in megatron-core's."""
