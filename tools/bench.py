"""Measure step time and peak memory of methods on one backbone, as ratios to full fine-tuning.

python tools/bench.py
python tools/bench.py --backbone vit_small_patch16_224 --batch 8 --cases full,lora-qkv,peft-lora-qkv
"""

import argparse
from pathlib import Path

import vpeft  # noqa: F401  before timm
from vpeft.benchmark import CASES, Setting, bench, merged_inference, table, to_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=Setting.backbone)
    parser.add_argument("--batch", type=int, default=Setting.batch)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--rounds", type=int, default=Setting.rounds)
    parser.add_argument("--threads", type=int, default=Setting.threads)
    parser.add_argument("--device", default=Setting.device, choices=("cpu", "cuda"))
    parser.add_argument("--precision", default=Setting.precision, choices=("fp32", "bf16"))
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; 'full' is always measured")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    arguments = vars(parser.parse_args())
    cases, file = arguments.pop("cases").split(","), arguments.pop("json")
    unknown = [case for case in cases if case not in CASES]
    if unknown:
        parser.error(f"there are no cases {', '.join(unknown)}; there are {', '.join(CASES)}")
    setting = Setting(**arguments)
    measured = bench(setting, ["full", *(case for case in cases if case != "full")])
    if file:
        file.write_text(to_json(setting, measured) + "\n")
    print(table(measured))
    difference, ratio = merged_inference(setting)
    print(f"\nmerged LoRA: outputs differ by {difference:.1e}, inference time {ratio:.3f} of the plain backbone")


if __name__ == "__main__":
    main()
