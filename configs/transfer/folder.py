"""Your own images, one folder per class: data_root/{train,val}/<class>/, or data_root/<class>/ with a fifth held out.

    python tools/train.py configs/transfer/folder.py --load-from crate_base.pth \\
        --cfg-options data_root=/my/images

The number of classes is the number of class folders, and a batch is at most all training images; the log gives both.
Images get the model's image size and channels. The model is the checkpoint's, or a config's with --model CONFIG. Random
weights (--model) need a larger learning rate, such as optim_wrapper.optimizer.lr=1e-3. Template for your own recipe:
crate_base_folder.py.
"""

_base_ = ["../_base_/transfer/finetune.py"]

model = dict(head=dict(num_classes=None))  # None: the number of classes of the training data
fit_batch = True  # a global_batch_size above the number of training images becomes this number
train_dataloader = dict(dataset=dict(source=dict(type="ClassFolders", split="train")))
val_dataloader = dict(dataset=dict(source=dict(type="ClassFolders", split="val")))
test_dataloader = val_dataloader
