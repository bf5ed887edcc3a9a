"""Write an adapter for another library, beside its model: tools/export.py ADAPTER --format peft -o FOLDER."""

from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/export.py",
        description="LoRA, DoRA and (IA)^3 as a folder of Hugging Face peft. For one plain model see tools/merge.py.",
        allow_abbrev=False,
    )
    cli.add_model_arguments(parser)
    parser.add_argument("--format", choices=["peft"], default="peft", help="of what is written (default peft)")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="the folder, which is made")
    arguments = parser.parse_args(argv)

    from vpeft import show
    from vpeft.interop import peft_format

    show.merged(*peft_format.export(arguments.adapter, arguments.output, arguments.weights))


if __name__ == "__main__":
    cli.run(main)
