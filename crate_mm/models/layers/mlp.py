"""A transformer's MLP in place of the sparsification step. Shapes: B images, N tokens, d embedding dimensions."""

from torch import Tensor, nn

from .layer import Sparsification


class MLP(Sparsification):
    """Two linear maps with a GELU between them: ``(B, N, d) -> (B, N, d)``.

    It has no sparse code, so sparsity is not defined: its activations are never exactly zero. ``tap_act`` passes the
    activations ``(B, N, ratio d)``.

    Args:
        embed_dim: d.
        ratio: hidden width in multiples of d, rounded down.
        bias: whether the linear maps have a bias.
        approximate: 'none', or 'tanh' for GPT-2's approximation of GELU.

    Raises:
        ValueError: the hidden width is less than 1.
    """

    has_code = False

    def __init__(self, embed_dim: int, ratio: float = 4, bias: bool = True, approximate: str = "none") -> None:
        super().__init__()
        hidden = int(embed_dim * ratio)
        if hidden < 1:
            raise ValueError(f"an MLP of width {embed_dim} has no hidden channel at a ratio of {ratio}")
        self.fc1 = nn.Linear(embed_dim, hidden, bias)
        self.act = nn.GELU(approximate)
        self.tap_act = nn.Identity()
        self.fc2 = nn.Linear(hidden, embed_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.tap_act(self.act(self.fc1(x))))
