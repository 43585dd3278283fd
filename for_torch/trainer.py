"""One process of a training: network, loss, optimizer, and what one iteration does.

An iteration is one optimizer step: the gradients of ``train.accumulate`` batches are averaged, then
over the ranks, clipped, applied. With BatchNorm, k accumulated batches are not one batch k times as
large: each is normalised by its own statistics, and the running ones move k times per step.

Everything that a later iteration depends on is in ``files`` and ``progress``, so that a resumed run
and one never interrupted are the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.checkpoint_store import Checkpoint, Writer
from common.config import Config
from common.provenance import code_digest, git_commit
from common.stopping import GRAD_NORM, NotFiniteError, SkippedSteps
from common.train_state import (
    CONFIG,
    EMA,
    MOMENTUM,
    WEIGHTS,
    Progress,
    forward_seed,
    read_arrays,
    write_arrays,
)
from common.weights import write_weights
from for_torch.amp import build_amp, canonical_array, tensor_of
from for_torch.backend import (
    NAME,
    load_arrays,
    seed_everything,
    set_default_dtype,
    to_numpy,
    versions,
)
from for_torch.distributed import (
    all_reduce_array,
    average_gradients,
    broadcast_parameters,
    rank,
    world_size,
)
from for_torch.ema import WeightAverage
from for_torch.losses import build_loss
from for_torch.models import Network, build_model
from for_torch.not_finite import explain, first_bad_layer
from for_torch.optim import (
    adopt_kernel_constants,
    build_optimizer,
    learning_rates,
    members_by_group,
)
from for_torch.optimizer_state import (
    load_momentum,
    momentum_arrays,
    schedule_steps,
    set_schedule_steps,
)
from for_torch.runtime import prepare_image, set_deterministic, to_channels_last
from for_torch.start import load_start_weights
from for_torch.sync_norm import convert_sync_batchnorm

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class StepResult:
    """What one iteration tells."""

    terms: dict[str, float]
    """Loss terms, averaged over the batches and ranks."""
    rates: dict[str, float]
    """Learning rate of each group in this step."""
    grad_norm: float
    """Norm of all gradients before clipping; not finite where a scaled float16 has overflowed."""
    stop: bool
    """Some rank was asked to stop."""


class Trainer:
    """The state of a training, and its iterations.

    Args:
        config: of the run.
        device: cpu or gpu; already chosen (distributed.initialise, backend.set_device).

    Raises:
        ConfigError: what the configuration asks for is not there on this device.
        WeightsError: the start weights do not fit.
    """

    def __init__(self, config: Config, *, device: Literal["cpu", "gpu"]) -> None:
        train = config.train
        self.config = config
        self.dtype: Literal["float32", "float64"] = (
            "float64" if train.precision == "float64" else "float32"
        )
        self.iteration = 0
        self.code_digest = code_digest()
        self.warnings: list[str] = []
        self.last_checkpoint: str | None = None
        """Named in the message when the loss is not finite."""
        set_default_dtype(self.dtype)
        set_deterministic(train.deterministic)
        seed_everything(train.seed)
        self.model = self._starting_network(device)
        self.loss = build_loss(
            config.loss, classes=config.model.classes, ignore_index=config.data.ignore_index
        )
        self.optimizer, self.scheduler = build_optimizer(
            self.model, optimizer=config.optimizer, schedule=config.schedule
        )
        if self.dtype == "float64":
            # the two frameworks then agree beyond float32
            adopt_kernel_constants(self.optimizer)
        self.amp = build_amp(
            self.model,
            self.optimizer,
            precision=train.precision,
            dtype=train.amp_dtype,
            device=device,
        )
        self.skipped = SkippedSteps()
        self.average: WeightAverage | None = None
        if train.ema_decay is not None:
            self.average = WeightAverage(self.amp.state_tensors(), decay=train.ema_decay)
        self.model.train()

    def step(self, batches: Sequence[Batch], *, stop: bool = False) -> StepResult:
        """Do one iteration.

        Args:
            batches: train.accumulate of them, with image (N, 3, H, W), label (N, H, W) int64 and
                name, as a loader gives them.
            stop: this process was asked to stop; the result tells whether any was.

        Raises:
            NotFiniteError: the loss of any rank is NaN or infinite, or a gradient is, without a
                scaler or too often in a row; no weight has changed. The loss alone would not do:
                Paddle's ReLU turns a NaN into 0, and a network with NaN weights may go on with a
                finite loss.
        """
        rates = learning_rates(self.optimizer)
        self.optimizer.zero_grad()
        parts = [
            self._forward_backward(batch, part, len(batches)) for part, batch in enumerate(batches)
        ]
        terms, stop = self._agree(parts, batches, stop=stop)
        average_gradients(self.model)
        self.amp.unscale()
        grad_norm = self._clip()
        if self.skipped.exceeded(grad_norm, scaled=self.amp.scaled):
            # averaged over the ranks: all of them come here
            raise self._not_finite({**terms, GRAD_NORM: grad_norm}, parts, batches)
        self.amp.step()
        self.scheduler.step()
        self.iteration += 1
        if self.average is not None:
            self.average.update(self.amp.state_tensors())
        return StepResult(terms, rates, grad_norm, stop)

    def evaluated_arrays(self) -> dict[str, NDArray[Any]]:
        """Return what an evaluation loads: the average if one is kept, else the weights."""
        tensors = self.amp.state_tensors() if self.average is None else self.average.tensors
        return _arrays(tensors)

    def evaluation_model(self) -> Network:
        """Return a network of its own with the evaluated weights of rank 0.

        The one in training is left alone: its precision, its layout, its synchronised BatchNorm.
        Rank 0's buffers count, as they do in a checkpoint; without synchronisation each rank has
        seen other samples.
        """
        model = self._network()
        load_arrays(model, self.evaluated_arrays())
        broadcast_parameters(model)
        model.eval()
        return model

    def image(self, batch: Batch) -> Tensor:
        """Return the batch's image in the dtype and layout of the network."""
        layout = self.config.train.channels_last
        return prepare_image(batch["image"], dtype=self.dtype, channels_last=layout)

    def files(self) -> dict[str, Writer]:
        """Return what writes the files of a checkpoint, from the state as it is now.

        Raises:
            NotFiniteError: a weight or buffer is NaN or infinite: no checkpoint to go on from.
        """
        name = self.config.model.name
        weights = _arrays(self.amp.state_tensors())
        bad = [key for key, array in weights.items() if not np.isfinite(array).all()]
        if bad:
            raise NotFiniteError(
                f"after iteration {self.iteration} {len(bad)} weights or buffers are NaN or "
                f"infinite ({', '.join(bad[:3])}, ...); nothing is saved. Last good checkpoint: "
                f"{self.last_checkpoint or 'none yet'}"
            )
        momentum = momentum_arrays(self.optimizer, self.model)
        files: dict[str, Writer] = {
            WEIGHTS: partial(write_weights, arrays=weights, model=name),
            MOMENTUM: partial(write_arrays, arrays=momentum),
            CONFIG: self._write_config,
        }
        if self.average is not None:
            average = _arrays(self.average.tensors)
            files[EMA] = partial(write_weights, arrays=average, model=name)
        return files

    def best_files(self) -> dict[str, Writer]:
        """Return what writes the evaluated weights and the configuration."""
        arrays = self.evaluated_arrays()
        name = self.config.model.name
        return {
            WEIGHTS: partial(write_weights, arrays=arrays, model=name),
            CONFIG: self._write_config,
        }

    def progress(
        self, *, samples: int, epoch: int, stopping: dict[str, Any], evaluated: int
    ) -> Progress:
        """Return where the training stands; the arguments are the caller's part of it."""
        return Progress(
            iteration=self.iteration,
            schedule_steps=schedule_steps(self.scheduler),
            epoch=epoch,
            samples=samples,
            seed=self.config.train.seed,
            world_size=world_size(),
            framework=NAME,
            precision=self.config.train.precision,
            scaler=self.amp.scaler_state(),
            stopping=stopping,
            evaluated=evaluated,
            commit=git_commit(),
            code_digest=self.code_digest,
            versions=versions(),
            config_digest=self.config.digest(),
            config=self.config.model_dump(mode="json"),
        )

    def restore(self, checkpoint: Checkpoint, progress: Progress) -> None:
        """Take up the state of a checkpoint; before the first step only.

        Raises:
            CheckpointError: a file of it cannot be read.
            WeightsError: it is of another network.
        """
        arrays = read_arrays(checkpoint.files[WEIGHTS])
        load_arrays(self.model, arrays)
        self.amp.set_masters(arrays)
        momentum = read_arrays(checkpoint.files[MOMENTUM])
        load_momentum(self.optimizer, self.model, momentum)
        set_schedule_steps(self.optimizer, self.scheduler, progress.schedule_steps)
        self.amp.load_scaler_state(progress.scaler)
        if self.average is not None:
            average = read_arrays(checkpoint.files[EMA])
            for name in self.average.tensors:
                self.average.tensors[name] = tensor_of(name, average[name])
        self.iteration = progress.iteration
        self.last_checkpoint = str(checkpoint.folder)

    def _network(self) -> Network:
        model = self.config.model
        return build_model(
            model.name, classes=model.classes, options=model.options, pair=model.pair
        )

    def _starting_network(self, device: Literal["cpu", "gpu"]) -> Network:
        config, train = self.config.model, self.config.train
        model = self._network()
        self.start = load_start_weights(
            model, weights=config.weights, backbone_weights=config.backbone_weights
        )
        if train.sync_bn and world_size() > 1:
            convert_sync_batchnorm(model, device=device, sync_bn=train.sync_bn)
        if train.channels_last:
            model, warning = to_channels_last(model)
            self.warnings += [warning] if warning else []
        broadcast_parameters(model)
        return model

    def _write_config(self, path: Any) -> None:
        path.write_text(self.config.dump_yaml(), encoding="utf-8")

    def _seed(self, part: int) -> None:
        seed = self.config.train.seed
        seed_everything(forward_seed(seed, iteration=self.iteration, rank=rank(), part=part))

    def _forward_backward(self, batch: Batch, part: int, parts: int) -> dict[str, float]:
        """Add the gradients of one batch, and return its loss terms as numbers."""
        self._seed(part)
        terms = self.loss(self.amp.forward(self.image(batch)), batch["label"])
        # also where it is not finite: with synchronised BatchNorm the other ranks wait for it
        self.amp.backward(terms["total"] / parts)
        values = to_numpy(torch.stack([term.detach() for term in terms.values()]))
        return dict(zip(terms, values.astype(np.float64).tolist(), strict=True))

    def _agree(
        self, parts: list[dict[str, float]], batches: Sequence[Batch], *, stop: bool
    ) -> tuple[dict[str, float], bool]:
        """Average the terms over batches and ranks; learn whether any rank stops or has failed."""
        values = np.array([list(part.values()) for part in parts])
        flags = np.zeros(world_size() + 1)
        flags[rank()] = not np.isfinite(values).all()
        flags[-1] = stop
        total = all_reduce_array(np.concatenate([values.mean(axis=0) / world_size(), flags]))
        count = values.shape[1]
        terms = dict(zip(parts[0], total[:count].tolist(), strict=True))
        if total[count:-1].any():
            raise self._not_finite(terms, parts, batches)
        return terms, bool(total[-1])

    def _not_finite(
        self, terms: Mapping[str, float], parts: list[dict[str, float]], batches: Sequence[Batch]
    ) -> NotFiniteError:
        def first_layer(batch: Batch, part: int) -> tuple[int, str]:
            image = self.image(batch)
            self._seed(part)
            return first_bad_layer(self.model, lambda: self.amp.forward(image), image=image)

        return explain(
            terms,
            batches,
            finite=[bool(np.isfinite(list(part.values())).all()) for part in parts],
            first_layer=first_layer,
            iteration=self.iteration + 1,
            checkpoint=self.last_checkpoint,
            steps=self.skipped.count if GRAD_NORM in terms else 1,
        )

    def _clip(self) -> float:
        """Scale the gradients down to the largest allowed norm; return the norm they had."""
        limit = self.config.train.clip_norm
        groups = members_by_group(self.model).values()
        parameters = [parameter for group in groups for parameter in group]
        # without a limit they are multiplied by 1
        return float(nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: canonical_array(name, tensor) for name, tensor in tensors.items()}
