"""Measure K runs packed into one process against K processes, one after another and at once.

python tools/bench_pack.py --members 4
python tools/bench_pack.py --backbone vit_base_patch16_224 --image-size 224 --batch 4 --steps 4
"""

import argparse
from pathlib import Path

import vpeft  # noqa: F401  before timm
from vpeft.packed.bench import Setting, bench, operations, table, to_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=Setting.backbone)
    parser.add_argument("--pretrained", default=Setting.pretrained)
    parser.add_argument("--image-size", type=int, default=Setting.image_size)
    parser.add_argument("--method", default=Setting.method)
    for name in ("members", "batch", "steps", "rounds", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Setting, name))
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = vars(parser.parse_args())
    file = arguments.pop("json")
    setting = Setting(**arguments)
    counted = operations(setting)
    rounds = bench(setting)
    if file:
        file.write_text(to_json(setting, rounds, counted) + "\n")
    print(table(rounds))
    print(f"\noperations of a step of all members: {counted[0] / 1e9:.1f} GFLOP apart, {counted[1] / 1e9:.1f} packed")


if __name__ == "__main__":
    main()
