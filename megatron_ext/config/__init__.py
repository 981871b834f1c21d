"""Configuration: dataclass sections, flags and files made from them, rules; imports no torch, no megatron-core.

`to_core.py` (the mapping to megatron-core's own objects) does import them and is therefore not imported here.
"""

from __future__ import annotations

from megatron_ext.config.load import Resolved, load_run_config
from megatron_ext.config.rules import check_rules
from megatron_ext.config.run import RunConfig, run_config_from_dict, run_config_to_dict
from megatron_ext.config.sections.checkpoint import CheckpointConfig
from megatron_ext.config.sections.data import DataConfig
from megatron_ext.config.sections.logging import LoggingConfig
from megatron_ext.config.sections.model import ModelConfig
from megatron_ext.config.sections.optim import OptimConfig
from megatron_ext.config.sections.parallel import ParallelConfig
from megatron_ext.config.sections.train import TrainConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "Resolved",
    "RunConfig",
    "TrainConfig",
    "check_rules",
    "load_run_config",
    "run_config_from_dict",
    "run_config_to_dict",
]
