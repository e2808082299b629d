"""What we use of PyTorch under names that are its own: all of it is here, tried on PyTorch 2.6, 2.11, 2.14 and 2.15."""

from torch import _foreach_add_ as foreach_add_  # noqa: F401
from torch import _foreach_mul as foreach_mul  # noqa: F401
from torch import _foreach_mul_ as foreach_mul_  # noqa: F401
from torch import _foreach_norm as foreach_norm  # noqa: F401
from torch import _foreach_sign_ as foreach_sign_  # noqa: F401
from torch._C import PyTorchFileReader  # noqa: F401
