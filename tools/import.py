"""Read a file of another project as an adapter: tools/import.py KIND FILE --backbone NAME -o adapter.safetensors ..."""

from collections.abc import Sequence
from pathlib import Path

from vpeft import cli, config


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/import.py",
        description="Folders of Hugging Face peft (LoRA, DoRA, (IA)^3), and checkpoints of the official code of VPT, "
        "AdaptFormer, SSF and FacT. Files are read as plain tensors; nothing in them is run.",
        epilog="--method.OPTION VALUE gives an option that no file holds, such as --method.scale of fact_tt and "
        "fact_tk. What --normalization, --resize and --interpolation are by default is what the official code did.",
        allow_abbrev=False,
    )
    parser.add_argument("kind", metavar="KIND", help="peft, vpt, adaptformer, ssf, fact_tt or fact_tk")
    parser.add_argument("file", metavar="FILE", help="the checkpoint; of peft the folder")
    parser.add_argument(
        "--backbone", metavar="NAME", required=True, help="what it was trained on, as in tools/train.py"
    )
    parser.add_argument("--pretrained", metavar="FILE", default="auto", help="its weights: auto, none or a file")
    parser.add_argument("--image_size", metavar="PIXELS", type=cli.at_least_one, help="of its images")
    parser.add_argument("--task", metavar="NAME", help="what it classifies; the classes of VTAB-1k's tasks are known")
    parser.add_argument("--classes", metavar="NAMES", help="a,b,c in the order of the logits, or a file of lines")
    parser.add_argument("--normalization", choices=["auto", "imagenet", "inception", "none"], help="of its images")
    parser.add_argument("--resize", choices=["squash", "crop"], help="of its images")
    parser.add_argument("--interpolation", choices=["auto", "bilinear", "bicubic"], help="of its images")
    parser.add_argument("-o", "--output", metavar="PATH", required=True, help="the adapter, *.safetensors")
    arguments, rest = parser.parse_known_args(argv)
    positional, pairs = config.split_words(rest)
    if positional:
        parser.error(f"one file is expected, and '{positional[0]}' is left over")

    from vpeft.interop import command
    from vpeft.interop.imported import Preparation

    prepared = arguments.normalization, arguments.resize, arguments.interpolation
    notes = command.run(
        arguments.kind,
        Path(arguments.file),
        Path(arguments.output),
        arguments.backbone,
        arguments.pretrained,
        arguments.image_size,
        command.options_of(pairs),
        Preparation(arguments.task, command.classes_of(arguments.classes), *prepared),
    )
    print("\n".join([f"wrote {arguments.output}", *notes]))


if __name__ == "__main__":
    cli.run(main)
