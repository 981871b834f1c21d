"""Megatron-style 3D-parallel pretraining on top of megatron-core; see README.md for the map.

Importing this package imports nothing else, so that `--help` of every command answers at once.
"""

__version__ = "0.1.0"
