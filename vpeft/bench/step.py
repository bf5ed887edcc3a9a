"""One training step of one case, in its three parts: forward and loss, backward, optimiser."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vpeft.abilities import Penalised, Stepping
from vpeft.backbones import Backbone, create
from vpeft.bench.cases import CLASSES, head_of, model_of
from vpeft.bench.process import wait
from vpeft.bench.setting import Setting
from vpeft.packed.sharing import twin
from vpeft.tuned import Tuned

_STEPS = 1000  # of the run that a step is taken to be of, for methods with a schedule


class Seconds(NamedTuple):
    """Of the parts of one step."""

    forward: float
    backward: float
    optimiser: float


def body_of(setting: Setting) -> Backbone:
    """The backbone that all cases of a process share."""
    return create(setting.backbone, "none", setting.image_size).to(torch.device(setting.device))


class Step:
    """Forward, cross-entropy, backward and AdamW on the same random images again and again.

    Args:
        setting: On what.
        spec: A value of CASES.
        body: Its frozen tensors are shared, so that all cases fit into memory at once; it is not changed.
    """

    def __init__(self, setting: Setting, spec: Mapping[str, Any], body: Backbone) -> None:
        torch.manual_seed(0)
        self.device, self.bf16 = torch.device(setting.device), setting.precision != "fp32"
        self.body = _own_parameters(twin(body))
        self.model = model_of(spec, self.body).to(self.device).train()
        if setting.precision == "bf16-frozen":
            _store_frozen_in_bf16(self.model)
        self.learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.learned, lr=1e-4, fused=True)  # as a run without clipping has it
        self.images = torch.randn(setting.batch, 3, *body.image_size, device=self.device)
        self.labels = torch.randint(CLASSES, (setting.batch,), device=self.device)
        self.methods = list(self.model.methods) if isinstance(self.model, Tuned) else []
        self._done = 0

    @property
    def trained(self) -> list[nn.Parameter]:
        """What learns besides the head."""
        head = {id(parameter) for parameter in head_of(self.model).parameters()}
        return [parameter for parameter in self.learned if id(parameter) not in head]

    def forward(self, count: int | None = None) -> Tensor:
        """The loss of the first `count` images, all by default."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = nn.functional.cross_entropy(self.model(self.images[:count]), self.labels[:count])
            return loss + sum(method.penalty() for method in self.methods if isinstance(method, Penalised))

    def update(self) -> None:
        """What follows the gradients; none of them is kept."""
        acting = [method for method in self.methods if isinstance(method, Stepping)]
        for method in acting:
            method.after_backward(self._done, _STEPS)
        self.optimiser.step()
        for method in acting:
            method.after_step(self._done, _STEPS)
        self.optimiser.zero_grad()
        self._done += 1

    def warm(self) -> None:
        """Let everything be made that only a first step makes: on a CPU two images are enough for that."""
        self.forward(2 if self.device.type == "cpu" else None).backward()
        self.update()
        wait(self.device)

    def __call__(self) -> Seconds:
        """Run it and return the wall time of its parts."""
        wait(self.device)
        times = [time.perf_counter()]
        loss = self.forward()
        wait(self.device)
        times.append(time.perf_counter())
        loss.backward()
        wait(self.device)
        times.append(time.perf_counter())
        self.update()
        wait(self.device)
        times.append(time.perf_counter())
        return Seconds(*(end - start for start, end in itertools.pairwise(times)))


def _own_parameters(body: Backbone) -> Backbone:
    """Let a twin have parameters of its own on the shared memory: one that is cast leaves the others as they are."""
    for module in body.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach(), parameter.requires_grad))
    return body


def _store_frozen_in_bf16(model: Tuned | nn.Sequential) -> None:
    if isinstance(model, Tuned):
        from vpeft.frozen import store

        store(model, "bf16")  # refuses where there is nothing to store, which would be the row of bf16 once more
        return
    for module in model.modules():  # peft has no such switch: the same maps by hand
        if isinstance(module, nn.Linear | nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
