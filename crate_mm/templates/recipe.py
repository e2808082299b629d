"""A recipe of my own, based on CRATE-Tiny on the handwritten digits.

crate-mm train my_recipe.py
"""

_base_ = ["configs/crate_tiny_digits.py"]

# Write only what differs from the base. `crate-mm print-config my_recipe.py` shows all settings.
model = dict(backbone=dict(arch=dict(_delete_=True, embed_dim=96, depth=4, num_heads=4)))  # in place of "tiny"
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=10)
# A dict is merged with the base's dict, or replaces it with _delete_=True. The test uses a changed val_dataloader too.
