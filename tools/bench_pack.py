"""Measure K runs packed into one process against K processes, one after another and at once.

python tools/bench_pack.py --members 4
python tools/bench_pack.py --backbone vit_base_patch16_224 --image-size 224 --batch 4 --steps 4
python tools/bench_pack.py --members 8 --rounds 0        # the step alone, in one process
"""

import argparse
from pathlib import Path

import vpeft  # noqa: F401  before timm
from vpeft.packed.bench import Setting, bench, step, table, to_json


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
    inside = step(setting)
    counted = ", ".join(f"{count / 1e9:.2f} GFLOP {name}" for name, count in inside.operations.items())
    print(f"forward and backward of all members: {counted}, time packed over apart {inside.ratio:.2f}", flush=True)
    rounds = bench(setting) if setting.rounds else []
    if file:
        file.write_text(to_json(setting, rounds, inside))
    if rounds:
        print(table(rounds))


if __name__ == "__main__":
    main()
