"""Test an adapter on the test split: tools/test.py ADAPTER [--data.task NAME] [--data.root DIR] ..."""

from collections.abc import Sequence

from vpeft import cli, config


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/test.py",
        description="Accuracy or mIoU of an adapter on the test split, with the preprocessing it was trained with.",
        epilog="--data.task, --data.root, --data.format, --data.eval_batch_size, --data.workers and --data.on_error "
        "are as in tools/train.py; the task is the adapter's own unless given. Of segmentation also --data.absent, "
        "--data.reduce_zero_label and --inference.mode, stride, scales and flip, and no --data.on_error.",
        allow_abbrev=False,
    )
    cli.add_model_arguments(parser)
    cli.add_device_argument(parser)
    arguments, rest = parser.parse_known_args(argv)
    positional, overrides = config.split_words(rest)
    if positional:
        parser.error(f"one adapter is expected, and '{positional[0]}' is left over")

    from vpeft import checkpoint, evaluation, show

    if checkpoint.read_manifest(arguments.adapter).get("kind") == "segmentation":
        from vpeft.dense import mask_predictor

        predictor = mask_predictor.MaskPredictor(arguments.adapter, arguments.weights, arguments.device)
        result, provenance = mask_predictor.test(predictor, overrides, arguments.adapter)
        show.segmentation(result, provenance, predictor.task.classes, predictor.task.inference)
        return
    from vpeft.predict import Classifier

    classifier = Classifier(arguments.adapter, arguments.weights, arguments.device)
    data = evaluation.open_data(classifier, overrides, arguments.adapter)
    show.evaluation(evaluation.test(classifier, data), classifier.manifest, data.provenance)


if __name__ == "__main__":
    cli.run(main)
