"""Measure K runs packed into one process against K processes, one after another and at once.

python tools/bench_pack.py --members 4
python tools/bench_pack.py --backbone vit_base_patch16_224 --image-size 224 --batch 4 --steps 4
python tools/bench_pack.py --members 8 --rounds 0        # the step alone, in one process
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import vpeft  # noqa: F401  before timm
from vpeft import cli, methods
from vpeft.packed.bench import Setting, bench, step, table, to_json


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser("tools/bench_pack.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=Setting.backbone)
    parser.add_argument("--pretrained", default=Setting.pretrained)
    parser.add_argument("--image-size", type=cli.at_least_one, default=Setting.image_size)
    parser.add_argument("--method", default=Setting.method)
    for name in ("members", "batch", "steps", "threads"):
        parser.add_argument(f"--{name}", type=cli.at_least_one, default=getattr(Setting, name))
    parser.add_argument("--rounds", type=cli.count, default=Setting.rounds)
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = vars(parser.parse_args(argv))
    file = arguments.pop("json")
    setting = Setting(**arguments)
    methods.check({"name": setting.method})
    inside = step(setting)
    counted = ", ".join(f"{count / 1e9:.2f} GFLOP {name}" for name, count in inside.operations.items())
    print(f"forward and backward of all members: {counted}, time packed over apart {inside.ratio:.2f}", flush=True)
    rounds = bench(setting) if setting.rounds else []
    if file:
        file.write_text(to_json(setting, rounds, inside))
    if rounds:
        print(table(rounds))


if __name__ == "__main__":
    cli.run(main)
