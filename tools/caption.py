"""Caption images with a multimodal adapter: tools/caption.py ADAPTER IMAGE... [--prompt TEXT] [--csv FILE]."""

from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("tools/caption.py", description="A caption of each image.", allow_abbrev=False)
    cli.add_model_arguments(parser)
    cli.add_language_argument(parser)
    cli.add_device_argument(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--prompt", metavar="TEXT", default="", help="shown with each image; captions are as a rule trained without"
    )
    parser.add_argument("--max_new_tokens", type=cli.at_least_one, metavar="N", default=48, help="default 48")
    parser.add_argument("--beams", type=cli.at_least_one, metavar="N", default=1, help="1 is greedy (default)")
    parser.add_argument("--csv", metavar="FILE", help="also write image, caption")
    arguments = parser.parse_args(argv)

    from mllm import caption
    from mllm.assistant import Assistant
    from mllm.generate import Decoding
    from vpeft import predict

    paths = predict.find_images(arguments.images)
    assistant = Assistant(arguments.adapter, arguments.weights, arguments.language, arguments.device)
    decoding = Decoding(max_new_tokens=arguments.max_new_tokens, beams=arguments.beams)
    captions, unreadable = caption.show(caption.caption(assistant, paths, decoding, arguments.prompt))
    if arguments.csv:
        caption.write_csv(arguments.csv, captions)
    return cli.FAILED if unreadable else 0


if __name__ == "__main__":
    cli.run(main)
