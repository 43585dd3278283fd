"""A whole training: resuming, data, log, evaluation, checkpoints, stopping.

Every rank runs this; rank 0 alone writes. What one rank learns and all must act on (a signal, a
loss that is not finite) is agreed on in Trainer.step.

A checkpoint is saved before the evaluation of the same iteration: whoever kills the run during the
evaluation loses nothing. A run resumed there evaluates first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sized
from typing import Any, cast

import numpy as np

from common.checkpoint_store import CheckpointStore, Writer
from common.errors import InputError, TrainingError
from common.iou import iou_per_class, mean_iou
from common.pictures import save_png
from common.provenance import git_commit
from common.read_failure import CannotReadError, Reader, ReadFailure, ReadingError
from common.run_log import RunLog, draw_curves
from common.sinks import open_sinks
from common.stopping import GRAD_NORM, STOPPED, EarlyStopping, NotFiniteError, StopRequest
from common.train_settings import TrainSettings
from common.train_state import Progress
from for_paddle.backend import set_device, versions
from for_paddle.data import train_loader
from for_paddle.distributed import (
    all_reduce_array,
    finalise,
    initialise,
    is_main,
    rank,
    world_size,
)
from for_paddle.reading import agree_on_reading
from for_paddle.resume import Resumed, find_checkpoint, prepare_folder, take_up, weights_bytes
from for_paddle.runtime import device_name, peak_memory_mib
from for_paddle.trainer import StepResult, Trainer
from for_paddle.validation import validate


def train_command(settings: TrainSettings) -> int:
    """Train as asked for, and return the exit code: 0 done, STOPPED after a signal.

    Raises:
        InputError: something the user can mend; NotFiniteError among them.
    """
    initialise(settings.device)
    set_device(settings.device)
    with StopRequest(repeat_s=2.0) as stop:
        try:
            code = TrainingRun(settings, stop=stop).run()
        except (NotFiniteError, ReadingError):
            # every rank has learned of it: they leave in order, and none takes another for lost
            finalise()
            raise
    finalise()
    return code


class TrainingRun:
    """One training from its start, or from a checkpoint, to its end or a stop.

    Args:
        settings: what is asked for.
        stop: asked before each iteration.
    """

    def __init__(self, settings: TrainSettings, *, stop: StopRequest) -> None:
        train = settings.config.train
        self.settings, self.config = settings, settings.config
        self.stop = stop
        self.total = settings.config.schedule.max_iters
        self.save_interval = train.save_interval
        self.eval_interval = train.eval_interval or train.save_interval
        self.store = CheckpointStore(settings.save_dir, keep=train.keep_checkpoint_max)
        self.stopping = EarlyStopping(train.patience)
        self.trainer = Trainer(settings.config, device=settings.device)
        self.saved = 0
        """Iteration of the newest checkpoint on disk."""
        self.evaluated = 0
        self.samples = 0
        """Samples in the training set."""
        self.draws = True
        self.logged = False
        """The log has a line of a training."""
        self.resumed: Resumed | None = None
        self.reader = Reader(train.loader_timeout_s, rank=rank(), on_stuck=self._tell_failure)

    def run(self) -> int:
        """Run it; see train_command."""
        self._resume()
        prepare_folder(
            self.store,
            self.trainer,
            resumed=self.resumed,
            saves=-(-(self.total - self.trainer.iteration) // self.save_interval),
            evaluates=self.settings.do_eval,
        )
        sinks = []
        if is_main():
            sinks = open_sinks(
                self.settings.save_dir,
                use_vdl=self.settings.use_vdl,
                use_tensorboard=self.settings.use_tensorboard,
            )
        with RunLog(
            self.settings.save_dir,
            enabled=is_main(),
            total_iterations=self.total,
            start_iteration=self.trainer.iteration,
            evaluates_again=self._evaluation_is_missing(),
            sinks=sinks,
        ) as log:
            self.log = log
            batches = self._batches()
            self._write_header()
            try:
                code = self._iterate(batches)
                self._draw()
            except NotFiniteError as error:
                self._event("not_finite", {"message": str(error)})
                raise
            except ReadingError as error:
                self._leave(error.failure)
                raise
            except (RuntimeError, SystemError) as error:
                # both frameworks raise it wherever the training process is when a worker ends
                if "DataLoader" not in str(error):
                    raise
                failure = ReadFailure.of(error, rank=rank(), wanted=self._next_iteration())
                self._tell_failure(failure)
                raise TrainingError(failure.message) from error
        return code

    def _iterate(self, batches: Iterator[dict[str, Any]]) -> int:
        trainer = self.trainer
        if self._evaluation_is_missing():
            self._evaluate()
        while trainer.iteration < self.total and not self.stopping.should_stop:
            started = time.perf_counter()
            group = self._next_group(batches)
            loaded = time.perf_counter()
            result = trainer.step(group, stop=self.stop.requested)
            self._log_step(result, data_s=loaded - started, step_s=time.perf_counter() - loaded)
            done = trainer.iteration == self.total
            if done or trainer.iteration % self.save_interval == 0:
                self._save()
            if result.stop and not done:
                return self._stopped()
            if self._evaluation_is_due():
                self._evaluate()
        if self.stopping.should_stop:
            self._save()
            best = {"best_miou": self.stopping.best, "best_iteration": self.stopping.best_iteration}
            self._event("stopped_early", {"patience": self.stopping.patience, **best})
        return 0

    def _stopped(self) -> int:
        self._save()
        number = self.stop.signal
        reason = number.name if number is not None else "a signal to another process"
        self._event("stopped", {"signal": reason, "resume": "--resume_model auto"})
        return STOPPED

    def _resume(self) -> None:
        checkpoint = find_checkpoint(self.store, asked=self.settings.resume)
        if checkpoint is None:
            return
        self.resumed = take_up(
            checkpoint, self.trainer, self.stopping, config=self.config, store=self.store
        )
        self.evaluated = self.resumed.progress.evaluated
        # elsewhere, its own checkpoint is not in this folder
        self.saved = self.trainer.iteration if self.resumed.own_place else 0
        logged = self.trainer.iteration >= self.config.train.log_interval
        self.logged = self.resumed.own_place and logged

    def _batches(self) -> Iterator[dict[str, Any]]:
        config, accumulate = self.config, self.config.train.accumulate
        loader = train_loader(
            config.data,
            classes=config.model.classes,
            seed=config.train.seed,
            iterations=self.total * accumulate,
            start_iteration=self.trainer.iteration * accumulate,
            world_size=world_size(),
            rank=rank(),
        )
        self.samples = len(cast("Sized", loader.loader.dataset))
        return self.reader.batches(loader, wanted=self._next_iteration)

    def _next_iteration(self) -> str:
        return f"iteration {self.trainer.iteration + 1}"

    def _next_group(self, batches: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the batches of one iteration; if a rank has none, all ranks raise ReadingError."""
        failure: ReadFailure | None = None
        group: list[dict[str, Any]] = []
        try:
            group = [next(batches) for _ in range(self.config.train.accumulate)]
        except CannotReadError as error:
            failure = error.failure
        agree_on_reading(failure)
        return group

    def _leave(self, failure: ReadFailure) -> None:
        """Save what was done before the data failed, and tell why; on all ranks."""
        try:
            self._save()
        except InputError as error:
            self._event("warning", {"message": f"nothing is saved: {error}"})
        self._tell_failure(failure)

    def _tell_failure(self, failure: ReadFailure) -> None:
        self._event(failure.event, failure.facts())

    def _drawn(self) -> int:
        """Return how many samples all processes have drawn together."""
        train = self.config.train
        each = self.config.data.batch_size * train.accumulate
        return self.trainer.iteration * each * world_size()

    def _log_step(self, result: StepResult, *, data_s: float, step_s: float) -> None:
        each = self.config.data.batch_size * self.config.train.accumulate
        self.log.step(images=each * world_size(), data_s=data_s, step_s=step_s)
        iteration = self.trainer.iteration
        if iteration % self.config.train.log_interval and iteration < self.total:
            return
        terms = result.terms
        if math.isfinite(result.grad_norm):
            terms = {**terms, GRAD_NORM: result.grad_norm}
        self.logged = True
        self.log.train(
            iteration,
            epoch=(self._drawn() - 1) // self.samples,
            terms=terms,
            lr=result.rates,
            memory_mib=peak_memory_mib(self.settings.device),
        )

    def _progress(self) -> Progress:
        return self.trainer.progress(
            samples=self._drawn(),
            epoch=self._drawn() // self.samples,
            stopping=self.stopping.state_dict(),
            evaluated=self.evaluated,
        )

    def _save(self) -> None:
        """Save the state, unless this very iteration is on disk already."""
        iteration = self.trainer.iteration
        if self.saved == iteration:
            return
        files = self._files()
        if is_main():
            meta = self._progress().as_meta()
            folder = self.store.save(iteration, files, meta=meta)
            self._event("checkpoint", {"folder": folder.name})
        # on all ranks: each tells it where the loss is not finite
        self.trainer.last_checkpoint = str(self.store.folder_of(iteration))
        self.saved = iteration

    def _files(self) -> dict[str, Writer]:
        """Return rank 0's files of a checkpoint; if its weights are not finite, all ranks raise."""
        files: dict[str, Writer] = {}
        found: NotFiniteError | None = None
        if is_main():
            try:
                files = self.trainer.files()
            except NotFiniteError as error:
                found = error
        if int(all_reduce_array(np.array([int(found is not None)]))[0]):
            raise found or NotFiniteError("weights of rank 0 are NaN or infinite; it tells which")
        return files

    def _evaluation_is_due(self) -> bool:
        iteration = self.trainer.iteration
        at_interval = iteration > 0 and iteration % self.eval_interval == 0
        return self.settings.do_eval and (at_interval or iteration == self.total)

    def _evaluation_is_missing(self) -> bool:
        """Tell whether it was resumed from a checkpoint that was saved before its evaluation."""
        return self._evaluation_is_due() and self.evaluated < self.trainer.iteration

    def _evaluate(self) -> None:
        """Evaluate on all ranks; keep the best weights and show the first sample."""
        rule, started = self.config.eval, time.perf_counter()
        model = self.trainer.evaluation_model()
        found = validate(model, self.config, image_of=self.trainer.image, reader=self.reader)
        miou = mean_iou(found.matrix, absent=rule.absent, count_void=rule.count_void)
        self.evaluated = self.trainer.iteration
        better = self.stopping.update(miou, iteration=self.evaluated)
        if not is_main():
            return
        if better:
            meta = self._progress().as_meta()
            files, size = self.trainer.best_files(), weights_bytes(self.trainer)
            self.store.save_best(self.evaluated, files, miou=miou, meta=meta, expected_bytes=size)
        classes = iou_per_class(found.matrix, count_void=rule.count_void)
        facts = {
            "best_miou": self.stopping.best,
            "best_iteration": self.stopping.best_iteration,
            "absent": rule.absent,
            "count_void": rule.count_void,
            "iou": [None if np.isnan(value) else float(value) for value in classes],
            "seconds": time.perf_counter() - started,
        }
        self.log.evaluation(self.evaluated, miou=miou, facts=facts)
        if found.picture is not None:
            name = f"iter_{self.evaluated:06d}.png"
            save_png(self.settings.save_dir / "predictions" / name, found.picture)
            for sink in self.log.sinks:
                sink.image("prediction", found.picture, self.evaluated)
        self._draw()

    def _draw(self) -> None:
        """Draw the curves, once there is something to draw; a run does not end for a picture."""
        if not (is_main() and self.draws and self.logged):
            return
        try:
            draw_curves(self.log.path, self.settings.save_dir / "curves.png")
        except InputError as error:
            self.draws = False
            self._event("warning", {"message": f"no curves are drawn: {error}"})

    def _event(self, kind: str, facts: dict[str, Any]) -> None:
        self.log.event(kind, self.trainer.iteration, facts)

    def _write_header(self) -> None:
        config, train = self.config, self.config.train
        self.log.header(
            command=self.settings.command,
            config_digest=config.digest(),
            code_digest=self.trainer.code_digest,
            commit=git_commit(),
            versions=versions(),
            parity=self.settings.parity,
            world_size=world_size(),
            facts={
                "device": device_name(self.settings.device),
                "precision": train.precision,
                "seed": train.seed,
                "global_batch": config.data.batch_size * train.accumulate * world_size(),
                "start": self.trainer.start.text(),
                "samples": self.samples,
            },
        )
        for warning in self.trainer.warnings:
            self._event("warning", {"message": warning})
