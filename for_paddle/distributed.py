"""One process per device: start-up by the launcher's environment, sums over ranks, a watch.

Started by ``python -m paddle.distributed.launch``: gloo on the CPU, NCCL on GPUs. Without a
launcher, or with one process, nothing is started and every function does nothing or returns its
argument's own value, so the callers need no second path.

Gradients are averaged explicitly after backward, and not by paddle.DataParallel: the sum is taken
in a fixed order, of the whole of what accumulation has gathered, in the same way on both sides and
in any dtype; parameters that the loss does not reach need no search of the graph. What it gives up
is the overlap of the transfer with backward: on n GPUs the step is longer by the time of one
all-reduce of all gradients (53 MB for BiSeNetV1 in float32).

Two traps of Paddle's gloo (3.3.1): a collective fails when a rank comes more than 30 seconds after
another, a limit that nothing sets, so the ranks first meet through the watch, which is patient; and
float16 sums are Inf, so they are taken in float32.

Not run: anything on a GPU (NCCL), more than one machine.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn
from paddle import distributed as dist

from common.errors import InputError
from common.rank_links import listen
from common.rank_watch import RankWatch, joining
from for_paddle.backend import to_numpy, trainable_parameters

TIMEOUT_S = 600.0
"""Seconds that a rank may be waited for, or be silent, before the job is ended."""
BUCKET_BYTES = 32 * 2**20
"""Gradients are copied together and summed in pieces of about this size."""
BACKUP_S = 60.0
"""The framework's own timeout comes this much later: its message names no rank."""

_watch: RankWatch | None = None


def initialise(device: Literal["cpu", "gpu"], *, timeout_s: float = TIMEOUT_S) -> None:
    """Join the other processes of the launcher; nothing to do where there is one process.

    Call it before anything is put on a device (backend.set_device). The GPU of this process is
    the launcher's choice (FLAGS_selected_gpus); backend.set_device("gpu") follows it.

    Args:
        device: "cpu" (gloo) or "gpu" (NCCL).
        timeout_s: a rank that the others have been waiting for this long, or that gives no sign
            of life for this long, ends the whole job with a message that names it and exit code
            common.rank_watch.EXIT_RANK_LOST. A rank that dies does so at once, one that never
            comes after timeout_s. Work that one rank does while the others wait (writing a
            checkpoint) must be shorter.

    Raises:
        InputError: the launcher's environment is incomplete, or there is no such GPU.
        RankLostError: the ranks cannot connect to one another.
    """
    global _watch
    if int(_environment("PADDLE_TRAINERS_NUM", default="1")) < 2:
        return
    for variable in ("PADDLE_TRAINER_ID", "PADDLE_CURRENT_ENDPOINT", "PADDLE_TRAINER_ENDPOINTS"):
        _environment(variable)
    if device == "gpu":
        local = int(_environment("FLAGS_selected_gpus").partition(",")[0])
        if local >= paddle.device.cuda.device_count():
            raise InputError(
                f"FLAGS_selected_gpus is {local}, but paddle sees "
                f"{paddle.device.cuda.device_count()} CUDA devices; name existing ones with --gpus"
            )
    # Paddle takes these from the environment alone
    os.environ["PADDLE_DISTRI_BACKEND"] = "nccl" if device == "gpu" else "gloo"
    os.environ["PADDLE_PG_TIMEOUT"] = str(round((timeout_s + BACKUP_S) * 1000))
    host = _environment("PADDLE_TRAINER_ENDPOINTS").partition(":")[0]
    with joining(int(_environment("PADDLE_TRAINER_ID")), timeout_s=timeout_s):
        dist.init_parallel_env()
        _watch = _start_watch(host, timeout_s)


def finalise() -> None:
    """Leave the job in order: every rank comes here, then none watches any more.

    After an exception just let the process end: the others learn of it from the watch.
    """
    global _watch
    if world_size() == 1:
        return
    barrier()
    if _watch is not None:
        _watch.close()
        _watch = None
    dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0..world_size-1."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Tell whether this is the process that logs and writes: rank 0."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here, and the device has done what was asked of it."""
    all_reduce_array(np.zeros(1))


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum over all ranks, the same bits on each; no gradient flows through it.

    Args:
        tensor: the same shape and dtype on every rank, floating point or integer; it is left as
            it is. float16 and bfloat16 are added up in float32.
    """
    if world_size() == 1:
        return tensor.detach().clone()
    return _wide_sum(tensor).astype(tensor.dtype)


def all_reduce_array(array: NDArray[Any]) -> NDArray[Any]:
    """Return the sum of a small array (a histogram, counts, seconds) over all ranks.

    Args:
        array: the same shape and dtype on every rank: int64, float32 or float64.

    Raises:
        InputError: another dtype; one that the collectives do not add up, or not exactly.
    """
    if array.dtype.name not in ("int64", "float32", "float64"):
        raise InputError(f"cannot add up {array.dtype} over ranks; expected int64 or a float")
    if world_size() == 1:
        return array.copy()
    return to_numpy(all_reduce_sum(paddle.to_tensor(array)))


def broadcast_parameters(model: nn.Layer) -> None:
    """Give every rank rank 0's parameters and buffers, in place."""
    if world_size() == 1:
        return
    with paddle.no_grad():
        for tensor in model.state_dict().values():
            block = tensor.detach().clone().contiguous()
            _collective(lambda block=block: dist.broadcast(block, src=0))
            paddle.assign(block, output=tensor)


def average_gradients(model: nn.Layer) -> None:
    """Replace every gradient by its mean over the ranks, the same bits on each.

    With each rank's loss the mean over its own pixels this makes the step that of the mean of
    the ranks' losses: of the whole batch if all ranks have as many (kept) pixels.

    A parameter without a gradient on some ranks counts as zero there; one without any on all
    ranks is left without. Gradients scaled for float16 stay so: unscale them after this, and every
    rank finds the same Inf.
    """
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for parameter in trainable_parameters(model).values():
        if bucket and (_bytes([*bucket, parameter]) > BUCKET_BYTES or _differs(bucket, parameter)):
            _average(bucket)
            bucket = []
        bucket.append(parameter)
    if bucket:
        _average(bucket)


def _average(parameters: list[Tensor]) -> None:
    """Average the gradients of one bucket in one transfer."""
    present = [float(parameter.grad is not None) for parameter in parameters]
    parts = [
        paddle.zeros_like(parameter).reshape([-1])
        if parameter.grad is None
        else parameter.grad.reshape([-1])
        for parameter in parameters
    ]
    # the flags ride along: which gradients exist is known of all ranks without another transfer
    flags = paddle.to_tensor(present, dtype=parts[0].dtype, place=parts[0].place)
    total = _wide_sum(paddle.concat([*parts, flags]))
    found = to_numpy(total[-len(parameters) :]) > 0
    start = 0
    for parameter, part, exists in zip(parameters, parts, found, strict=True):
        if exists:
            mean = (total[start : start + len(part)] / world_size()).astype(part.dtype)
            parameter.grad = mean.reshape(parameter.shape)
        start += len(part)


def _wide_sum(tensor: Tensor) -> Tensor:
    """Return the sum over all ranks; of half precision, in float32."""
    wide = paddle.float32 if tensor.dtype in (paddle.float16, paddle.bfloat16) else tensor.dtype
    # a copy in any case, and one block of memory, whatever the tensor's strides are
    total = tensor.detach().astype(wide).clone().contiguous()
    _collective(lambda: dist.all_reduce(total, op=dist.ReduceOp.SUM))
    return total


def _bytes(parameters: list[Tensor]) -> int:
    return sum(int(parameter.size) * parameter.element_size() for parameter in parameters)


def _differs(bucket: list[Tensor], parameter: Tensor) -> bool:
    return bucket[0].dtype != parameter.dtype


def _collective(run: Callable[[], object]) -> None:
    """Run one collective; where it fails, let the watch say which rank is the cause."""
    if _watch is not None:
        # gloo's own patience ends after 30 seconds
        _watch.enter(wait=dist.get_backend() == "GLOO")
    try:
        run()
    except RuntimeError:
        if _watch is not None:
            _watch.settle()
        raise


def _start_watch(host: str, timeout_s: float) -> RankWatch:
    """Connect all ranks to rank 0, whose port and token they learn by a first sum."""
    listener = listen(host) if rank() == 0 else None
    message = np.zeros(3, np.int64)
    if listener is not None:
        message[:] = listener.getsockname()[1], secrets.randbits(62), secrets.randbits(62)
    port, *token = (int(number) for number in all_reduce_array(message))
    watch = RankWatch(rank=rank(), world_size=world_size(), timeout_s=timeout_s)
    words = b"".join(word.to_bytes(8, "big") for word in token)
    watch.start(token=words, listener=listener, address=(host, port))
    return watch


def _environment(variable: str, *, default: str | None = None) -> str:
    value = os.environ.get(variable, default)
    if value is None:
        raise InputError(
            f"PADDLE_TRAINERS_NUM is set, but {variable} is not; start the job with "
            "python -m paddle.distributed.launch (--nproc_per_node 2 on a CPU, --gpus 0,1 on GPUs)"
        )
    return value
