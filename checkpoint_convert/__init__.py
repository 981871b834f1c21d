"""Conversion between megatron_ext checkpoints and Hugging Face folders: tables, a loop, two commands."""
