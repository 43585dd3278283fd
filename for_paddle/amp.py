"""Mixed precision: where Torch and Paddle are free to differ.

O1 is paddle.amp.auto_cast: float32 weights, convolutions and products in a short type. O2
is paddle.amp.decorate: the weights are short but for normalisation layers, and the optimizer keeps
float32 master weights, which are what checkpoints and averages are made of. Paddle knows neither
on a CPU: auto_cast warns there and does nothing (2.6.2 and 3.3.1), so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn
from paddle.optimizer import Momentum

from common.config_sections import AmpDtype, Precision
from common.errors import ConfigError
from common.weight_names import paddle_to_canonical, turn_linear
from for_paddle.backend import to_numpy, to_tensor, trainable_parameters
from for_paddle.norm import InPlaceABN

Device = Literal["cpu", "gpu"]

_SHORT = (paddle.float16, paddle.bfloat16)


class MixedPrecision:
    """Forward pass, backward pass and optimizer step in the precision of a run.

    Args:
        model: the network; under O2 its weights become float16.
        optimizer: from build_optimizer; under O2 it gets master weights.
        precision: as in the configuration; under float32 and float64 nothing is cast.
        dtype: the short type of a mixed precision.
        device: cpu or gpu.

    Raises:
        ConfigError: a mixed precision on a CPU.
    """

    def __init__(
        self,
        model: nn.Layer,
        optimizer: Momentum,
        *,
        precision: Precision,
        dtype: AmpDtype,
        device: Device,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.mixed = precision in ("amp_o1", "amp_o2")
        self.dtype = dtype
        if self.mixed and device == "cpu":
            raise ConfigError(
                f"train.precision is {precision} on device cpu; Paddle has mixed precision on a "
                "GPU only. Use --device gpu, or --precision fp32"
            )
        # bfloat16 has float32's range: nothing to scale. On a CPU the constructor warns
        self.scaled = self.mixed and dtype == "float16"
        self.scaler = paddle.amp.GradScaler() if self.scaled else None
        if precision == "amp_o2":
            # InPlaceABN is no BatchNorm of Paddle's, which would be left out by itself
            paddle.amp.decorate(
                models=model,
                optimizers=optimizer,
                level="O2",
                dtype=dtype,
                master_weight=True,
                excluded_layers=[InPlaceABN],
            )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the network and return its logits, in float32 if the precision is mixed."""
        if not self.mixed:
            return self.model(image)
        level = "O2" if self.precision == "amp_o2" else "O1"
        with paddle.amp.auto_cast(level=level, dtype=self.dtype):
            outputs = self.model(image)
        return {name: logits.astype("float32") for name, logits in outputs.items()}

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the loss, scaled."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self) -> None:
        """Bring the gradients back to the loss's own scale; once per step, before clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)

    def step(self) -> None:
        """Step the optimizer, unless a scaled gradient has overflowed; adapt the scale."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers in full precision: canonical name -> tensor itself."""
        state = {paddle_to_canonical(n): t for n, t in self.model.state_dict().items()}
        return state | self._masters()

    def set_masters(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the master weights from canonical arrays; the model's own are set already."""
        if self.precision != "amp_o2":
            return
        masters = {
            tensor.name: paddle.to_tensor(turn_linear(name, arrays[name]).astype(np.float32))
            for name, tensor in trainable_parameters(self.model).items()
            if tensor.dtype in _SHORT
        }
        for key, tensor in masters.items():
            tensor.name = f"{key}_fp32_master_0"
        vars(self.optimizer)["_master_weights"] = masters

    def scaler_state(self) -> dict[str, float]:
        """Return the scale and its counters, empty without a scaler."""
        if self.scaler is None:
            return {}
        state = self.scaler.state_dict()
        return {key: float(np.asarray(value).reshape(-1)[0]) for key, value in state.items()}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Take up what scaler_state has returned."""
        if state and self.scaler is not None:
            counters = {"incr_every_n_steps", "decr_every_n_nan_or_inf", "incr_count", "decr_count"}
            loaded: dict[str, Any] = {k: int(v) if k in counters else v for k, v in state.items()}
            loaded["scale"] = np.array([state["scale"]], dtype=np.float32)
            loaded["use_dynamic_loss_scaling"] = bool(state["use_dynamic_loss_scaling"])
            self.scaler.load_state_dict(loaded)

    def _masters(self) -> dict[str, Tensor]:
        masters: dict[str, Tensor] = vars(self.optimizer).get("_master_weights", {})
        named = trainable_parameters(self.model).items()
        return {name: masters[tensor.name] for name, tensor in named if tensor.name in masters}


def build_amp(
    model: nn.Layer,
    optimizer: Momentum,
    *,
    precision: Precision,
    dtype: AmpDtype,
    device: Device,
) -> MixedPrecision:
    """Return the precision of a run; see MixedPrecision."""
    return MixedPrecision(model, optimizer, precision=precision, dtype=dtype, device=device)


def full_precision(tensor: Tensor) -> Tensor:
    """Return a detached copy, of short types in float32."""
    return tensor.detach().astype("float32") if tensor.dtype in _SHORT else tensor.detach().clone()


def canonical_array(name: str, tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor of MixedPrecision.state_tensors to the host, in the canonical layout."""
    return np.ascontiguousarray(turn_linear(name, to_numpy(tensor)))


def tensor_of(name: str, array: NDArray[Any]) -> Tensor:
    """Copy a canonical array to the device; undoes canonical_array."""
    return to_tensor(np.ascontiguousarray(turn_linear(name, array)))
