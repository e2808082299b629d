"""Load configs, apply overrides, and fill in the derived settings."""

from .batch import BatchPlan, plan_batch
from .data import fill_from_data, lacks_num_classes
from .images import fill_images
from .load import CONFIGS, defines_model, dump, find_config, load_config, require_model
from .resolve import default_work_dir, expand_home, fill_banks, resolve_config

__all__ = [
    "CONFIGS", "BatchPlan", "defines_model", "dump", "find_config", "load_config", "plan_batch", "resolve_config",
]  # fmt: skip
