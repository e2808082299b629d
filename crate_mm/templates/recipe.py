"""A recipe of my own, based on CRATE-Tiny on the handwritten digits.

crate-mm train my_recipe.py
"""

_base_ = ["configs/crate_tiny_digits.py"]

# Write only what differs from the base. `crate-mm print-config my_recipe.py` shows all settings.
model = dict(backbone=dict(arch=dict(embed_dim=96, depth=4, num_heads=4)))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=10)
# A dict replaces the base's with _delete_=True. A changed val_dataloader is the test_dataloader, too.
