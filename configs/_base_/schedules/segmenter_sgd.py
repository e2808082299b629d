# Segmenter's training, which DEPICT and CBT follow: SGD with Nesterov's momentum, batch 8, 64 epochs, no weight decay.
# The learning rate falls from 1e-3 to 1e-5 as a polynomial of power 0.9, by step.
global_batch_size = 8  # images per step, over all processes

optim_wrapper = dict(optimizer=dict(type="SGD", lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.0))
param_scheduler = dict(type="PolyLR", power=0.9, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True)

train_cfg = dict(max_epochs=64, val_interval=4)
val_cfg = dict()
test_cfg = dict()
