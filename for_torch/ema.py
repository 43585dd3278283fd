"""Moving average of the weights and buffers, which is what is evaluated when it is kept.

average = decay * average + (1 - decay) * value, once per optimizer step, from the first value on;
BatchNorm's running statistics are averaged like the weights they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from for_torch.amp import full_precision
from for_torch.backend import no_grad


class WeightAverage:
    """The averages of some tensors, by name.

    Args:
        tensors: their first values; copied, those of short types to float32.
        decay: weight of the old average, between 0 and 1.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: full_precision(tensor) for name, tensor in tensors.items()}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in the values after one step; the same names as at the start."""
        with no_grad():
            for name, average in self.tensors.items():
                value = full_precision(tensors[name])
                self.tensors[name] = self.decay * average + (1.0 - self.decay) * value
