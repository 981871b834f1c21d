"""megatron-core's GPTModel with the blocks it lacks on CPU: norm, attention (ALiBi), cross entropy, initialisation."""
