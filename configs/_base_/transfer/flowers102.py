# Oxford Flowers-102: trained on the 1,020 images of 'train', tested on the 6,149 of 'test'; data_root/flowers-102/.
_base_ = ["finetune.py"]

train_dataloader = dict(dataset=dict(source=dict(type="Flowers102", split="train")))
val_dataloader = dict(dataset=dict(source=dict(type="Flowers102", split="test")))
test_dataloader = val_dataloader

global_batch_size = 510  # two steps an epoch see all 1,020 images; 512 would leave half of them out
