"""Write an adapter into its model's weights: tools/merge.py ADAPTER -o merged.safetensors, or -o FOLDER."""

from collections.abc import Sequence
from pathlib import Path

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/merge.py",
        description="What the backbone's own library loads, for methods that change only its weights: one file for "
        "timm and open_clip, a folder or a file for transformers; of a multimodal adapter a folder for transformers, "
        "as LLaVA or BLIP-2.",
        allow_abbrev=False,
    )
    cli.add_model_arguments(parser)
    cli.add_language_argument(parser)
    parser.add_argument(
        "-o", "--output", metavar="PATH", required=True, help="the merged weights, *.safetensors; or the folder"
    )
    arguments = parser.parse_args(argv)

    from vpeft import adapter_file, merge, show

    if adapter_file.package(Path(arguments.adapter)) == "mllm":
        from mllm.export import export

        show.merged(*export(arguments.adapter, arguments.output, arguments.weights, arguments.language))
        return
    if arguments.language:
        parser.error("--language is for multimodal adapters, and this is none")
    show.merged(*merge.merge(arguments.adapter, arguments.output, arguments.weights))


if __name__ == "__main__":
    cli.run(main)
