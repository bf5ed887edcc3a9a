"""Measure what methods cost: time, memory, inference, compilation, growth (`--help`)."""

import vpeft  # noqa: F401  before timm
from vpeft import cli
from vpeft.bench.command import main

if __name__ == "__main__":
    cli.run(main)
