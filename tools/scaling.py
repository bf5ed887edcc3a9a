"""What VTAB-1k costs on one accelerator, counted and simulated: tools/scaling.py CONFIG ... [--key value ...].

python tools/scaling.py configs/vtab/lora.yaml configs/vtab/vpt.yaml
python tools/scaling.py configs/vtab/lora.yaml --name A100 --flops 312e12 --bandwidth 2.0e12 --cores 8
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    from vpeft.scaling import simulation, tables, work

    parser = cli.Parser("tools/scaling.py", description=__doc__.splitlines()[0] if __doc__ else "", allow_abbrev=False)
    parser.add_argument("configs", metavar="CONFIG", nargs="+", help="their methods and backbones are counted")
    for item in dataclasses.fields(work.Device):
        kind: Any = str if item.name == "name" else cli.above_zero
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=kind, default=getattr(work.H200, item.name))
    parser.add_argument("--cores", type=cli.at_least_one, default=16, help="that decode images (default: 16)")
    parser.add_argument("--pack", type=cli.counts, default=[1, 4], help="members in one step (default: 1,4)")
    parser.add_argument("--jobs", type=cli.counts, default=[1, 4], help="runs that share the device (default: 1,4)")
    parser.add_argument(
        "--host", type=cli.above_zero, default=8.0, help="seconds of loading and saving a run (default: 8)"
    )
    given = vars(parser.parse_args(argv))
    device = work.Device(**{item.name: given.pop(item.name) for item in dataclasses.fields(work.Device)})

    from vpeft import config

    settings = [config.classifying(config.parse([file, "--data.root", "."]), file) for file in given["configs"]]
    decode = functools.cache(lambda task: simulation.decode_seconds(simulation.SIZES[task]))
    print(tables.decoding_table(decode))
    print(f"\n{device}, {given['cores']} cores\n")
    print(tables.cost_table(settings, device, given["pack"], given["jobs"], given["cores"], decode, given["host"]))


if __name__ == "__main__":
    cli.run(main)
