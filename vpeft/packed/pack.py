"""Runs that take turns: each has its own Trainer in its own thread, and one of them goes at a time.

A run goes until it needs the features of its images, or the gradient of them is known; then it waits. When all
wait, `Pack` serves those that are furthest behind: an evaluation before a gradient, a gradient before the next batch.
So the batches of all runs meet and are computed as one, whatever the lengths of their epochs, and what a run meets
follows from the runs alone and not from the clock.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from vpeft.packed import joint
from vpeft.packed.joint import Generators
from vpeft.tasks.resuming import LastCheckpoint
from vpeft.tuned import Tuned

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Wish(IntEnum):
    """What a run waits for, in the order in which wishes are granted."""

    VALIDATE = 0
    BACKWARD = 1
    TEST = 2
    TRAIN = 3


@dataclass(frozen=True)
class Mode:
    """How torch computes in a run's thread."""

    inference: bool
    gradients: bool
    autocast: torch.dtype | None

    @classmethod
    def now(cls, device: str) -> Mode:
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return cls(torch.is_inference_mode_enabled(), torch.is_grad_enabled(), cast)

    @contextmanager
    def enter(self, device: str) -> Iterator[None]:
        cast = torch.autocast(device, self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(self.inference), torch.set_grad_enabled(self.gradients), cast:
            yield


@dataclass(frozen=True)
class Request:
    """A wish, and the tensor that it is about: images, or the gradient of features."""

    wish: Wish
    tensor: Tensor
    mode: Mode


@dataclass(eq=False)
class Seat(L.Callback):
    """A run's place in a pack.

    `features` and `backward` are called by the run's own task (`vpeft.tasks.classification`), in its thread; all else
    by the pack.

    Args:
        tuned: The run's model.
        position: In the pack, from 0.
    """

    tuned: Tuned
    position: int
    request: Request | None = None
    answer: Any = None
    given: Tensor | None = None  # features in the pack's graph, until their gradient is there
    generators: Generators = field(default_factory=lambda: Generators.now(torch.device("cpu")))
    trainer: L.Trainer | None = None
    outcome: Any = None  # what the run returned, or what ended it
    _leaf: Tensor | None = None  # the same features in the graph of the run
    _turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.trainer = trainer
        self.generators.device = trainer.strategy.root_device

    def features(self, images: Tensor) -> Tensor:
        """Features [B, C] of images [B, 3, H, W], as the run's model makes them."""
        assert self.trainer is not None, "a run asks for features within its Trainer"
        wish = Wish.TRAIN if self.trainer.training else Wish.TEST if self.trainer.testing else Wish.VALIDATE
        given = self._ask(wish, images)
        if not given.requires_grad:
            return given
        self._leaf = leaf = given.detach().requires_grad_()
        return leaf

    def backward(self) -> None:
        """Hand on the gradient that a backward pass has left at the features."""
        leaf, self._leaf = self._leaf, None
        if leaf is not None and leaf.grad is not None:
            self._ask(Wish.BACKWARD, leaf.grad)

    def _ask(self, wish: Wish, tensor: Tensor) -> Any:
        self.request = Request(wish, tensor, Mode.now(tensor.device.type))
        self._back.release()
        self._turn.acquire()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def sit_down(self, run: Callable[[], Any]) -> None:
        """Start the thread of the run, which waits for its first turn."""
        threading.Thread(target=self._live, args=(run,), name=f"member {self.position}", daemon=True).start()

    def _live(self, run: Callable[[], Any]) -> None:
        self._turn.acquire()
        try:
            self.outcome = run()
        except BaseException as error:  # Interrupted is a SystemExit, which would end this thread alone
            self.outcome = error
        self._back.release()

    def go(self, answer: Any = None) -> None:
        """Let the run go until it waits again, or has ended; `request` is None then."""
        self.request, self.answer = None, answer
        with self.generators.use():
            self._turn.release()
            self._back.acquire()

    def stop(self, number: int) -> None:
        """Let the run leave after its present step."""
        assert self.trainer is not None, "a run that waits has a Trainer"
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, LastCheckpoint):
                callback.stop(number)


class Pack:
    """Runs that take turns until all have ended.

    Args:
        runs: What each seat's thread does.
    """

    def __init__(self, runs: Mapping[Seat, Callable[[], Any]]) -> None:
        self.runs = runs
        self._received: int | None = None

    def run(self) -> None:
        """Run all; what became of each is in the `outcome` of its seat."""
        with self._signals():
            for seat, run in self.runs.items():
                seat.sit_down(run)
                seat.go()
            while waiting := [seat for seat in self.runs if seat.request is not None]:
                self._serve(waiting)

    def _serve(self, waiting: Sequence[Seat]) -> None:
        wish = min(_request(seat).wish for seat in waiting)
        # All stop at one step, so that they meet again as they would have met; none is within an evaluation then.
        if self._received is not None and wish >= Wish.TEST:
            for seat in waiting:
                seat.stop(self._received)
        first = [seat for seat in waiting if _request(seat).wish == wish]
        answers = self._backward(first) if wish == Wish.BACKWARD else self._forward(first)
        for seat, answer in zip(first, answers, strict=True):
            seat.go(answer)

    def _forward(self, seats: Sequence[Seat]) -> list[Any]:
        alike: dict[Any, list[Seat]] = defaultdict(list)
        for seat in seats:
            request = _request(seat)
            alike[request.tensor.shape, request.mode].append(seat)
        for group in alike.values():
            self._together(group)
        return [seat.answer for seat in seats]

    def _together(self, group: Sequence[Seat]) -> None:
        requests = [_request(seat) for seat in group]
        place = requests[0].tensor.device
        try:
            _bring(group[0].tuned, place)
            with requests[0].mode.enter(place.type):
                found = _features(group, [request.tensor for request in requests])
        except Exception as error:  # of torch, for all that asked; each ends as a run of its own would
            found = [error] * len(group)
        for seat, one in zip(group, found, strict=True):
            seat.answer = one
            seat.given = one if isinstance(one, Tensor) and one.requires_grad else None

    def _backward(self, seats: Sequence[Seat]) -> list[Any]:
        given, gradients = [seat.given for seat in seats], [_request(seat).tensor for seat in seats]
        for seat in seats:
            seat.given = None
        try:
            torch.autograd.backward(given, gradients)  # pyright: ignore[reportArgumentType]  (whoever asks was given)
        except Exception as error:
            return [error] * len(seats)
        return [None] * len(seats)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = self._received or number


def _bring(tuned: Tuned, place: torch.device) -> None:
    """Take the shared weights back to where the pack computes: a run that ends moves its model to the CPU."""
    if any(parameter.device != place for parameter in tuned.backbone.parameters()):
        tuned.backbone.to(place)


def _request(seat: Seat) -> Request:
    assert seat.request is not None, "only those that wait are served"
    return seat.request


def _features(group: Sequence[Seat], images: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(group) > 1:
        return joint.features([seat.tuned for seat in group], images, [seat.generators for seat in group]).unbind()
    (seat,) = group
    with seat.generators.use():
        return [seat.tuned.backbone(images[0])]
