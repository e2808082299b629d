from .batch import BatchPlan, plan_batch
from .load import CONFIGS, dump, find_config, load_config, names_model, require_model
from .resolve import default_work_dir, expand_home, fill_banks, prepare
