"""The recipes of language models: their parameters, schedule and weight decay are those of their authors."""

import pytest
import torch

from crate_mm.config import load_config, resolve_config
from crate_mm.engine.optim.schedule import WarmupCosineLR
from crate_mm.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

PARAMETERS = {  # positions included; of causal CRATE, as of the authors' code
    "causal_crate_base_owt": 60_699_648,
    "causal_crate_overcomplete_pile": 81_934_848,
}
PUBLISHED = ["causal_crate_base_owt", "causal_crate_overcomplete_pile", "causal_crate_1l_pile", "gpt2_base_owt"]
PUBLISHED += ["causal_tost_base_owt", "causal_tost_medium_owt", "causal_tost_large_owt", "causal_aot_base_owt"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    with torch.device("meta"):
        model = MODELS.build(load_config(name).model)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_that_of_nanogpt(name):
    cfg = resolve_config(load_config(name), world_size=1)
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert (train.length, cfg.global_batch_size, cfg.train_cfg.max_steps) == (1024, 480, 600_000)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ("AmpOptimWrapper", "bfloat16")
    decay = 0.01 if name == "causal_tost_base_owt" else 0.1
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=6e-4, betas=(0.9, 0.95), weight_decay=decay)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1.0)
    assert (val.drop_last, val.get("random_windows")) == (False, None)
    options = {key: value for key, value in cfg.param_scheduler.items() if key not in ("type", "convert_to_iter_based")}
    schedule = WarmupCosineLR.build_iter_from_epoch(
        torch.optim.SGD([torch.zeros(1)], lr=6e-4),
        epoch_length=train.random_windows // cfg.global_batch_size,
        **{"end": 1, **options, "end_step": cfg.train_cfg.max_steps},
    )
    rates = [6e-4 * schedule.factor(step) for step in (0, 1000, 2000, 600_000)]
    assert rates == pytest.approx([0, 3e-4, 6e-4, 6e-5])


@pytest.mark.parametrize("kind", ["crate", "crate_overcomplete", "tost", "aot", "gpt2"])
def test_parameters_of_more_than_one_dimension_decay(kind):
    cfg = resolve_config(load_config(f"compare_language/{kind}"), world_size=1)
    wrapper = cfg.optim_wrapper
    paramwise, model = wrapper.pop("paramwise_cfg"), MODELS.build(cfg.model)
    built = OPTIM_WRAPPER_CONSTRUCTORS.get("DefaultOptimWrapperConstructor")(wrapper, paramwise)(model)
    for group in built.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
