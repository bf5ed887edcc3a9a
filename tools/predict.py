"""Classify or segment images: tools/predict.py ADAPTER IMAGE... [--top 5] [--csv FILE] [--masks DIR]."""

from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(
        "tools/predict.py", description="The likeliest classes of images, or their masks.", allow_abbrev=False
    )
    cli.add_model_arguments(parser)
    cli.add_device_argument(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=cli.at_least_one, default=5, metavar="N", help="classes an image (default 5)")
    parser.add_argument("--csv", metavar="FILE", help="also write path, rank, class, probability")
    parser.add_argument("--masks", metavar="DIR", help="of segmentation: where a PNG of every image's classes goes")
    arguments = parser.parse_args(argv)

    from vpeft import checkpoint, predict, show

    paths = predict.find_images(arguments.images)
    if checkpoint.read_manifest(arguments.adapter).get("kind") == "segmentation":
        if not arguments.masks or arguments.csv:
            parser.error("this adapter is of kind segmentation: give --masks DIR, and no --csv")
        from vpeft.dense.mask_predictor import MaskPredictor

        segmenter = MaskPredictor(arguments.adapter, arguments.weights, arguments.device)
        unreadable = show.masks(segmenter, paths, arguments.masks, arguments.top)
        return cli.FAILED if unreadable else 0
    if arguments.masks:
        parser.error("--masks is for adapters of kind segmentation, and this one classifies whole images")
    classifier = predict.Classifier(arguments.adapter, arguments.weights, arguments.device)
    predictions, unreadable = show.predictions(predict.predict(classifier, paths, arguments.top))
    if arguments.csv:
        predict.write_csv(arguments.csv, predictions)
    return cli.FAILED if unreadable else 0


if __name__ == "__main__":
    cli.run(main)
