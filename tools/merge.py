"""Write an adapter into its backbone's weights: tools/merge.py ADAPTER -o merged.safetensors."""

from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/merge.py",
        description="One file that the backbone's own library loads, for methods that change only its weights.",
        allow_abbrev=False,
    )
    cli.add_model_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the merged weights, *.safetensors")
    arguments = parser.parse_args(argv)

    from vpeft import merge, show

    show.merged(*merge.merge(arguments.adapter, arguments.output, arguments.weights))


if __name__ == "__main__":
    cli.run(main)
