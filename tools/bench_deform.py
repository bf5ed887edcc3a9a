"""Measure our sampling of deformable attention, as it is and compiled, against transformers' pure-PyTorch one.

python tools/bench_deform.py
python tools/bench_deform.py --batch 1 --side 256 --rounds 5
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import vpeft  # noqa: F401  before transformers
from vpeft import cli
from vpeft.dense.bench_deform import KINDS, Setting, bench, table, to_json
from vpeft.predict import find_device


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser("tools/bench_deform.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name in ("batch", "side", "heads", "dim", "points", "rounds", "threads"):
        parser.add_argument(f"--{name}", type=cli.at_least_one, default=getattr(Setting, name))
    parser.add_argument("--device", default=Setting.device, help="cpu (default) or cuda")
    parser.add_argument("--eager", action="store_true", help="leave the compiled one out")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = vars(parser.parse_args(argv))
    file, eager = arguments.pop("json"), arguments.pop("eager")
    find_device(arguments["device"])
    setting = Setting(**arguments)
    found = bench(setting, KINDS[:2] if eager else KINDS)
    if file:
        file.write_text(to_json(setting, found))
    print(table(found))


if __name__ == "__main__":
    cli.run(main)
