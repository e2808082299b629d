"""Loading configs, applying overrides, and resolving what depends on the machine."""

from .batch import BatchPlan, plan_batch
from .load import CONFIGS, defines_model, dump, find_config, load_config, require_model
from .resolve import default_work_dir, expand_home, fill_banks, resolve_config
