"""A causal language model on bytes, with CRATE's operators."""

import math
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from torch import nn

from crate_mm.datasets.base import Field, SampleDataset
from crate_mm.models import Backbone, Task
from crate_mm.models.families.block import build_block
from crate_mm.registry import BACKBONES, DATASETS, METRICS, MODELS

IGNORED = -100  # label of a position that predicts nothing


@DATASETS.register_module()
class PythonTopics(SampleDataset):
    """Byte windows of Python's help texts. A window that extends beyond the end of its text is padded."""

    def __init__(self, split, length=64, texts=16):
        names = sorted(topics)
        chosen = names[:texts] if split == "train" else names[texts : texts + texts // 2]
        self.length, self.texts = length, [topics[name].encode() for name in chosen]
        self.starts = [(i, start) for i, text in enumerate(self.texts) for start in range(0, len(text) - 1, length)]

    @property
    def spec(self):
        window = Field(torch.int64, (self.length,))
        return {"inputs": window, "labels": window}

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        position, seed = index if isinstance(index, tuple) else (index, None)
        i, start = self.starts[position]
        if seed is not None:  # a random start, up to one window earlier
            start = max(0, start - torch.randint(self.length, (), generator=torch.Generator().manual_seed(seed)).item())
        ids = torch.tensor(list(self.texts[i][start : start + self.length + 1]))
        inputs, labels = torch.zeros(self.length, dtype=torch.int64), torch.full((self.length,), IGNORED)
        inputs[: len(ids) - 1], labels[: len(ids) - 1] = ids[:-1], ids[1:]
        return {"inputs": inputs, "labels": labels, "sample_idx": position}


@BACKBONES.register_module()
class ByteCRATE(Backbone):
    """Map token IDs ``(B, N)`` to tokens ``(B, N, embed_dim)``."""

    def __init__(self, embed_dim=48, depth=2, num_heads=3, length=64, vocabulary=256):
        super().__init__()
        self.embed_dim, self.length = embed_dim, length
        self.embedding = nn.Embedding(vocabulary, embed_dim)
        self.positions = nn.Parameter(0.02 * torch.randn(length, embed_dim))
        parts = dict(compress=dict(type="MSSA", causal=True), sparsify=dict(type="ISTA"))
        self.blocks = nn.ModuleList(build_block(embed_dim, num_heads, **parts) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, ids):
        z = self.embedding(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            z = block(z)
        return self.norm(z)


@MODELS.register_module()
class ByteModel(Task):
    headline = ("eval/bits_per_byte", "less")

    def __init__(self, backbone, vocabulary=256):
        super().__init__()
        self.backbone = BACKBONES.build(dict(backbone, vocabulary=vocabulary))
        self.head = nn.Linear(self.backbone.embed_dim, vocabulary)

    def tensor(self, inputs, **_):  # logits of the next byte, (B, N, vocabulary)
        return self.head(self.backbone(inputs))

    def cross_entropy(self, inputs, labels, reduction):
        return F.cross_entropy(self.tensor(inputs).mT, labels, ignore_index=IGNORED, reduction=reduction)

    def count(self, batch):
        return (batch["labels"] != IGNORED).sum().item()

    def loss(self, inputs, labels, **_):
        return {"loss": self.cross_entropy(inputs, labels, "mean")}

    def predict(self, inputs, labels, **_):
        sums = self.cross_entropy(inputs, labels, "none").sum(1)
        return list(zip(sums.tolist(), (labels != IGNORED).sum(1).tolist(), strict=True))

    def features(self, inputs, **_):
        return self.backbone(inputs).mean(1)

    def example(self, size=None):
        return {"inputs": torch.zeros(1, self.backbone.length, dtype=torch.int64)}


@METRICS.register_module()
class BitsPerByte(BaseMetric):
    default_prefix = "eval"

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        nats, labels = map(sum, zip(*results, strict=True))
        return {"bits_per_byte": nats / labels / math.log(2)}
