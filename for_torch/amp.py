"""Mixed precision: where Torch and Paddle are free to differ.

O1 is torch.amp.autocast: float32 weights, convolutions and products in low precision. O2 runs the
whole network but its normalisation in low precision, on copies of the weights that are cast anew
for each forward pass; the parameters themselves stay float32 and are the master weights, so that
gradients, optimizer, average and checkpoint are float32 as ever. float16 goes with a GradScaler
and needs a GPU; bfloat16 needs none, and is what a CPU computes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from common.config_sections import AmpDtype, Precision
from common.weight_names import is_batch_counter
from for_torch.backend import to_numpy, to_tensor

Device = Literal["cpu", "gpu"]

_LOW_PRECISION_LAYERS = (nn.Conv2d, nn.Linear)


class MixedPrecision:
    """Forward pass, backward pass and optimizer step in the precision of a run.

    Args:
        model: the network; not changed.
        optimizer: from build_optimizer; not changed.
        precision: as in the configuration; under float32 and float64 nothing is cast.
        dtype: the short type of a mixed precision; a CPU takes bfloat16 whatever it is.
        device: cpu or gpu.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        *,
        precision: Precision,
        dtype: AmpDtype,
        device: Device,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.mixed = precision in ("amp_o1", "amp_o2")
        self.device_type = "cuda" if device == "gpu" else "cpu"
        half = dtype == "float16" and device == "gpu"
        self.dtype = torch.float16 if half else torch.bfloat16
        # bfloat16 has float32's range: nothing to scale
        self.scaled = self.mixed and half
        # torch 2.1 and 2.2 have it in torch.cuda.amp, from 2.4 on that place warns
        self.scaler: Any = (
            torch.amp.GradScaler("cuda", enabled=self.scaled)
            if hasattr(torch.amp, "GradScaler")
            else torch.cuda.amp.GradScaler(enabled=self.scaled)  # pyright: ignore[reportDeprecated]
        )
        self._cast = _low_precision_parameters(model) if precision == "amp_o2" else []

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the network and return its logits, in float32 if the precision is mixed."""
        if not self.mixed:
            return self.model(image)
        if self.precision == "amp_o2":
            parameters = dict(self.model.named_parameters())
            weights = {name: parameters[name].to(self.dtype) for name in self._cast}
            outputs = functional_call(self.model, weights, (image.to(self.dtype),))
        else:
            with torch.autocast(self.device_type, dtype=self.dtype):
                outputs = self.model(image)
        return {name: logits.float() for name, logits in outputs.items()}

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the loss, scaled."""
        self.scaler.scale(loss).backward()

    def unscale(self) -> None:
        """Bring the gradients back to the loss's own scale; once per step, before clipping."""
        self.scaler.unscale_(self.optimizer)

    def step(self) -> None:
        """Step the optimizer, unless a scaled gradient has overflowed; adapt the scale."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers in full precision: canonical name -> tensor itself."""
        state = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if not is_batch_counter(name)}

    def set_masters(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the master weights from canonical arrays; here the model's own parameters are."""

    def scaler_state(self) -> dict[str, float]:
        """Return the scale and its counters, empty without a scaler."""
        return {key: float(value) for key, value in self.scaler.state_dict().items()}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Take up what scaler_state has returned."""
        if state:
            counters = {"growth_interval", "_growth_tracker"}
            self.scaler.load_state_dict(
                {key: int(value) if key in counters else value for key, value in state.items()}
            )


def build_amp(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    *,
    precision: Precision,
    dtype: AmpDtype,
    device: Device,
) -> MixedPrecision:
    """Return the precision of a run; see MixedPrecision."""
    return MixedPrecision(model, optimizer, precision=precision, dtype=dtype, device=device)


def full_precision(tensor: Tensor) -> Tensor:
    """Return a detached copy, of short types in float32."""
    short = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.detach().to(torch.float32 if short else tensor.dtype, copy=True)


def canonical_array(name: str, tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor of MixedPrecision.state_tensors to the host, in the canonical layout."""
    del name
    return to_numpy(tensor)


def tensor_of(name: str, array: NDArray[Any]) -> Tensor:
    """Copy a canonical array to the device; undoes canonical_array."""
    del name
    return to_tensor(array)


def _low_precision_parameters(model: nn.Module) -> list[str]:
    return [
        f"{layer_name}.{name}" if layer_name else name
        for layer_name, layer in model.named_modules()
        if isinstance(layer, _LOW_PRECISION_LAYERS)
        for name, _ in layer.named_parameters(recurse=False)
    ]
