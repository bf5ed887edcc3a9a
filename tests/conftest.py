"""Settings that every test shares."""

import os
import signal

# Weights come from packages or from files the tests write: no test waits for a hub to answer.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import torch

import vpeft  # noqa: F401  the torchvision guard comes before any other import of torchvision

# A shell has what it starts in the background ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # the models are tiny: more threads only get in each other's way

# The same examples every time, and no clock: a slow machine is no failure.
hypothesis.settings.register_profile("vpeft", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.load_profile("vpeft")
