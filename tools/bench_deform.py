"""Measure our sampling of deformable attention, as it is and compiled, against transformers' pure-PyTorch one.

python tools/bench_deform.py
python tools/bench_deform.py --batch 1 --side 256 --rounds 5
"""

import argparse
from pathlib import Path

import vpeft  # noqa: F401  before transformers
from vpeft.dense.bench_deform import KINDS, Setting, bench, table, to_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("batch", "side", "heads", "dim", "points", "rounds", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Setting, name))
    parser.add_argument("--device", default=Setting.device, choices=("cpu", "cuda"))
    parser.add_argument("--eager", action="store_true", help="leave the compiled one out")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = vars(parser.parse_args())
    file, eager = arguments.pop("json"), arguments.pop("eager")
    setting = Setting(**arguments)
    found = bench(setting, KINDS[:2] if eager else KINDS)
    if file:
        file.write_text(to_json(setting, found))
    print(table(found))


if __name__ == "__main__":
    main()
