"""ToST-S (small_12, 22,589,944 parameters) on ImageNet-1K by the recipe of tost_tiny_in1k.py (Wu et al., ICLR 2025).

    tools/dist_train.sh configs/tost_small_in1k.py 8 --amp --cfg-options data_root=/data/imagenet

The authors report 77.9 % top-1, 84.1 % on ImageNet ReaL, and fine-tuned 96.5 % on CIFAR-10, 82.7 % on CIFAR-100, 92.8 %
on Flowers-102 and 91.1 % on Pets. Not reproduced here.
"""

_base_ = ["tost_tiny_in1k.py"]

model = dict(backbone=dict(arch="small_12", drop_path=0.05))
