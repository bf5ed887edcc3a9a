"""Measure step time and peak memory of a multimodal run beside transformers' Trainer with peft, on a CPU under Linux.

python tools/bench_mllm.py
python tools/bench_mllm.py --questions 1 --rounds 2 --cases both
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import vpeft  # noqa: F401  before timm
from mllm.bench import bench, table, to_json
from mllm.bench_cases import CASES
from mllm.bench_setting import Setting
from mllm.data import vqa
from vpeft import cli


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser("tools/bench_mllm.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name in (
        "dim",
        "depth",
        "image-size",
        "samples",
        "questions",
        "batch",
        "capacity",
        "rows",
        "rounds",
        "threads",
    ):
        parser.add_argument(f"--{name}", type=cli.at_least_one, default=getattr(Setting, name.replace("-", "_")))
    parser.add_argument("--language", default=Setting.language)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; the Trainer is always measured")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = vars(parser.parse_args(argv))
    cases, file, memory = cli.words(arguments.pop("cases")), arguments.pop("json"), not arguments.pop("no_memory")
    if unknown := [case for case in cases if case not in CASES]:
        parser.error(f"there are no cases {', '.join(unknown)}; there are {', '.join(CASES)}")
    setting = Setting(**arguments)
    measured = bench(setting, vqa.read()["train"], cases, memory)
    if file:
        file.write_text(to_json(setting, measured))
    print(table(measured))


if __name__ == "__main__":
    cli.run(main)
