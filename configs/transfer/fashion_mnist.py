"""Fashion-MNIST for a small model of 28 x 28 gray images, 60,000 training and 10,000 test images.

    python tools/train.py configs/transfer/fashion_mnist.py --load-from work_dirs/mae/epoch_12.pth
    python tools/train.py configs/transfer/fashion_mnist.py --load-from work_dirs/mae/epoch_12.pth --linear-probe

work_dirs/mae/epoch_12.pth stands for a checkpoint of crate_mae_mini_fashion_mnist.py. The model is the checkpoint's
backbone with a linear head on its CLS token; --linear-probe trains only the head. Results: configs/RESULTS.md.
"""

_base_ = ["../_base_/datasets/fashion_mnist.py", "../_base_/schedules/small_adamw.py", "../_base_/default_runtime.py"]

model = dict(head=dict(num_classes=10), label_smoothing=0.1)
