"""Stopping: real signals in child processes, early stopping, a loss that is not finite."""

import json
import os
import signal
import time
from collections.abc import Callable

import pytest
from forking import in_child

from common import rank_watch, stopping
from common.errors import CheckpointError, InputError
from common.stopping import (
    EarlyStopping,
    NotFiniteError,
    SkippedSteps,
    StopRequest,
    check_finite,
    not_finite,
)


def wait_until(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


def test_exit_codes_are_distinct() -> None:
    codes = [stopping.STOPPED, stopping.NOT_FINITE, rank_watch.EXIT_RANK_LOST]
    # 0 done, 1 to 3 are the command line's, 128 and above tell signals
    assert len(set(codes)) == 3
    assert all(3 < code < 128 for code in codes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    def work() -> None:
        with StopRequest() as stop:
            assert not stop.requested
            assert stop.signal is None
            os.kill(os.getpid(), number)
            assert wait_until(lambda: stop.requested)
            assert stop.signal is number

    assert in_child(work) == 0


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    def work() -> None:
        with StopRequest() as stop:
            os.kill(os.getpid(), first)
            assert wait_until(lambda: stop.requested)
            os.kill(os.getpid(), second)
            time.sleep(30)

    # by the signal itself: whoever waits sees which
    assert in_child(work) == -second


def test_a_launcher_that_repeats_itself_is_one_request() -> None:
    def work() -> None:
        with StopRequest(repeat_s=0.5) as stop:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
            assert stop.requested
            time.sleep(0.6)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)

    # not by the repeated SIGTERM
    assert in_child(work) == -signal.SIGINT


def test_the_handlers_before_come_back() -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in stopping.SIGNALS] != before
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_loaders_worker_stays_at_sigint_and_ends_at_sigterm(
    number: signal.Signals, code: int
) -> None:
    with StopRequest() as stop:

        def worker() -> None:
            os.kill(os.getpid(), number)
            # a handler runs at the latest here
            time.sleep(0.01)
            assert not stop.requested

        assert in_child(worker) == code
        assert not stop.requested


def test_early_stopping_by_hand() -> None:
    early = EarlyStopping(2)
    history = [(0.3, True, False), (0.2, False, False), (0.4, True, False)]
    # equal is not better, nor is NaN
    history += [(0.4, False, False), (float("nan"), False, True), (0.5, True, False)]
    for iteration, (miou, better, stop) in enumerate(history):
        assert early.update(miou, iteration=iteration) is better
        assert early.should_stop is stop
    assert (early.best, early.best_iteration, early.waited) == (0.5, 5, 0)


def test_without_patience_it_never_stops() -> None:
    early = EarlyStopping(None)
    assert early.update(0.0, iteration=0)
    for iteration in range(1, 50):
        assert not early.update(0.0, iteration=iteration)
        assert not early.should_stop
    assert early.best == 0.0


def test_nan_alone_is_no_best() -> None:
    early = EarlyStopping(1)
    assert not early.update(float("nan"), iteration=3)
    assert (early.best, early.best_iteration) == (None, None)
    assert early.should_stop


def test_early_stopping_goes_on_from_its_state() -> None:
    early, resumed = EarlyStopping(3), EarlyStopping(3)
    early.update(0.5, iteration=10)
    early.update(0.4, iteration=20)
    resumed.load_state_dict(json.loads(json.dumps(early.state_dict())))
    for one in (early, resumed):
        assert not one.update(0.45, iteration=30)
        assert not one.should_stop
        assert not one.update(0.5, iteration=40)
        assert one.should_stop
        assert (one.best, one.best_iteration) == (0.5, 10)


@pytest.mark.parametrize("state", [{}, {"best": 1.0, "waited": 0}, {"best": None, "more": 1}])
def test_a_state_of_another_kind_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="expected \\['best', 'best_iteration', 'waited'\\]"):
        EarlyStopping(1).load_state_dict(state)


def test_finite_losses_pass() -> None:
    check_finite({"total": 0.0, "main": 1e300, "aux": -1.0}, iteration=1, names=["a"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_told(bad: float) -> None:
    with pytest.raises(NotFiniteError) as caught:
        check_finite({"total": 1.0, "aux16": bad}, iteration=7, names=["a.png", "b.png"])
    text = str(caught.value)
    for words in (
        "the loss of iteration 7 is not finite",
        f"aux16 {bad:g}",
        "samples of the batch: a.png, b.png",
        "there is no checkpoint yet",
    ):
        assert words in text
    assert "layer" not in text
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("cp.arm16.conv", "first layer with a NaN or Inf: cp.arm16.conv"),
        ("", "first layer with a NaN or Inf: none, the loss itself"),
    ],
)
def test_the_layer_and_the_last_checkpoint_are_told(layer: str, expected: str) -> None:
    error = not_finite(
        {"total": float("nan")}, iteration=3, names=["a"], layer=layer, checkpoint="iter_000002"
    )
    assert expected in str(error)
    assert "last good checkpoint: iter_000002" in str(error)


# ---- steps that a gradient scaler skips ----------------------------------------------------------
NAN, INF = float("nan"), float("inf")


def test_without_a_scaler_one_bad_gradient_is_too_much() -> None:
    assert not SkippedSteps().exceeded(1e30, scaled=False)
    for norm in (NAN, INF):
        assert SkippedSteps().exceeded(norm, scaled=False)


def test_a_scaler_may_skip_a_number_of_steps_in_a_row() -> None:
    skipped = SkippedSteps(limit=3)
    norms = [INF, INF, INF, 1.0, INF, NAN, INF, INF]
    found = [skipped.exceeded(norm, scaled=True) for norm in norms]
    # a good one in between starts the count anew
    assert found == [False] * 7 + [True]
    assert skipped.count == 4


def test_the_limit_leaves_a_scaler_the_time_to_find_its_scale() -> None:
    # from 2**40, halved every two steps, to below 1
    scale, steps = 2.0**40, 0
    while scale >= 1:
        steps += 1
        scale /= 2 if steps % 2 == 0 else 1
    assert steps <= stopping.MAX_SKIPPED
    skipped = SkippedSteps()
    assert not any(skipped.exceeded(INF, scaled=True) for _ in range(steps))


def test_that_it_went_on_for_long_is_told() -> None:
    terms = {"total": 1.0, stopping.GRAD_NORM: INF}
    text = str(not_finite(terms, iteration=200, names=["a"], steps=101))
    assert "the gradient of iteration 200 is not finite" in text
    assert "nor was it in the 100 steps before, though the scale was lowered" in text
    assert "steps before" not in str(not_finite(terms, iteration=200, names=["a"]))
