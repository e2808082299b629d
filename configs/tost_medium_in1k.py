"""ToST-M (medium_24, 71,481,064 parameters) on ImageNet-1K by the recipe of tost_tiny_in1k.py (Wu et al., ICLR 2025).

    tools/dist_train.sh configs/tost_medium_in1k.py 16 --amp --cfg-options data_root=/data/imagenet

The authors report 80.3 % top-1, 85.6 % on ImageNet ReaL, and fine-tuned 97.5 % on CIFAR-10, 84.5 % on CIFAR-100, 94.2 %
on Flowers-102 and 92.8 % on Pets. Not reproduced here. They count 68.1 M parameters; this model, the medium model of
their code, has 71.5 M.
"""

_base_ = ["tost_tiny_in1k.py"]

model = dict(backbone=dict(arch="medium_24", drop_path=0.15))
