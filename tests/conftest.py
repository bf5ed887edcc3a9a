"""Settings that every test shares."""

import os

# Weights come from packages or from files the tests write: no test waits for a hub to answer.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import vpeft  # noqa: F401  the torchvision guard comes before any other import of torchvision

torch.set_num_threads(1)  # the models are tiny: more threads only get in each other's way
