"""Tiny models that are trained here: tools/tiny.py FOLDER makes them, and with --try shows that connectors learn.

python tools/tiny.py tiny
python tools/tiny.py tiny --try all
python tools/tiny.py tiny --try mlp,qformer --json found.json
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vpeft import cli

CONFIG = Path(__file__).parents[1] / "configs" / "mllm" / "tiny.yaml"


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser("tools/tiny.py", description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="holds vision/ and language/, or is made")
    parser.add_argument("--try", dest="names", metavar="NAMES", help="connectors to train, or all")
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"), help="folder of their runs")
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    from mllm import gate, tiny
    from mllm.schema import MLLMConfig
    from vpeft.config import parse
    from vpeft.fetch import write_atomic

    wanted = list(gate.VARIANTS) if arguments.names == "all" else cli.words(arguments.names)
    if unknown := [name for name in wanted if name not in gate.VARIANTS]:
        parser.error(f"there is no connector '{unknown[0]}' to try; there are {', '.join(gate.VARIANTS)}")
    if arguments.folder.is_file():
        parser.error(f"{arguments.folder} is a file; give a folder, which is made where it is missing")
    if not (arguments.folder / "language" / "config.json").exists():
        tiny.make(arguments.folder, arguments.seed)
    words = [str(CONFIG), "--vision.backbone", f"hf:{arguments.folder / 'vision'}"]
    words += ["--language.name", f"hf:{arguments.folder / 'language'}", "--seed", str(arguments.seed)]
    config = parse([*words, "--output", str(arguments.output)])
    assert isinstance(config, MLLMConfig)
    found = {name: gate.try_variant(config, gate.VARIANTS[name]) for name in wanted}
    if found:
        print(gate.table(found))
    if arguments.json:
        write_atomic(arguments.json, (json.dumps({k: asdict(v) for k, v in found.items()}, indent=2) + "\n").encode())


if __name__ == "__main__":
    cli.run(main)
