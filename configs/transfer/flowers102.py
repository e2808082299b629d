"""Oxford Flowers-102, by the paper's fine-tuning recipe: trained on the 1,020 images of 'train', tested on the 6,149 of
'test', in data_root/flowers-102/.

    python tools/train.py configs/transfer/flowers102.py --load-from crate_base.pth
    python tools/train.py configs/transfer/flowers102.py --load-from crate_base.pth --linear-probe

The model is the checkpoint's, or a config's with --model CONFIG. The paper reports 84.6, 87.1, 88.7 and 88.3 %
top-1 for CRATE-Tiny, Small, Base and Large, 85.1 and 88.5 % for ViT-Tiny and Small (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/transfer/finetune.py"]

model = dict(head=dict(num_classes=102))
train_dataloader = dict(dataset=dict(source=dict(type="Flowers102", split="train")))
val_dataloader = dict(dataset=dict(source=dict(type="Flowers102", split="test")))
test_dataloader = val_dataloader

global_batch_size = 510  # two steps per epoch cover all 1,020 images; 512 would omit half of them
