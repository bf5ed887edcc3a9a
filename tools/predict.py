"""Classify images: tools/predict.py ADAPTER IMAGE... [--top 5] [--csv FILE]."""

from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("tools/predict.py", description="The likeliest classes of images.", allow_abbrev=False)
    cli.add_model_arguments(parser)
    cli.add_device_argument(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=cli.at_least_one, default=5, metavar="N", help="classes an image (default 5)")
    parser.add_argument("--csv", metavar="FILE", help="also write path, rank, class, probability")
    arguments = parser.parse_args(argv)

    from vpeft import predict, show

    paths = predict.find_images(arguments.images)
    classifier = predict.Classifier(arguments.adapter, arguments.weights, arguments.device)
    predictions, unreadable = show.predictions(predict.predict(classifier, paths, arguments.top))
    if arguments.csv:
        predict.write_csv(arguments.csv, predictions)
    return cli.FAILED if unreadable else 0


if __name__ == "__main__":
    cli.run(main)
