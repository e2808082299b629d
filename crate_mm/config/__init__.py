from .batch import BatchPlan, plan_batch
from .load import CONFIGS, find_config, load_config, names_model
from .prepare import default_work_dir, prepare

__all__ = [
    "CONFIGS",
    "BatchPlan",
    "default_work_dir",
    "find_config",
    "load_config",
    "names_model",
    "plan_batch",
    "prepare",
]
