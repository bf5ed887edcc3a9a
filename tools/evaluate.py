"""Score the answers of a multimodal adapter: tools/evaluate.py ADAPTER [--score exact] [--data.task NAME] ..."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

from mllm.schema import EvaluationConfig
from vpeft import cli, config


def main(argv: Sequence[str]) -> None:
    defaults = EvaluationConfig()
    parser = cli.Parser(
        "tools/evaluate.py",
        description="Loss and scored answers of an adapter, with the preparation it was trained with.",
        epilog="--data.task, --data.root, --data.files.test, --data.template, --data.system, --data.question, "
        "--data.max_length, --data.eval_batch_size, --data.workers and --data.on_missing are as in tools/train.py; the "
        "task is the adapter's own unless given.",
        allow_abbrev=False,
    )
    cli.add_model_arguments(parser)
    cli.add_language_argument(parser)
    cli.add_device_argument(parser)
    rules = get_args(get_type_hints(EvaluationConfig)["score"])
    parser.add_argument("--score", choices=rules, default="exact", help="how answers are scored (default exact)")
    parser.add_argument("--part", default="test", help="part of the data (default test)")
    parser.add_argument("--samples", type=cli.at_least_one, metavar="N", help="only so many, chosen by hashes")
    parser.add_argument("--max_new_tokens", type=cli.at_least_one, metavar="N", default=defaults.max_new_tokens)
    parser.add_argument("--beams", type=cli.at_least_one, metavar="N", default=defaults.beams, help="1 is greedy")
    parser.add_argument("--controls", action="store_true", help="also with the images of others, and blank ones")
    parser.add_argument("--output", metavar="DIR", default="runs", help="of results.jsonl (default runs)")
    parser.add_argument("--answers", metavar="FILE", help="also write every answer, as a line of JSON")
    arguments, rest = parser.parse_known_args(argv)
    positional, overrides = config.split_words(rest)
    if positional:
        parser.error(f"one adapter is expected, and '{positional[0]}' is left over")
    if arguments.score == "none" and (arguments.controls or arguments.answers):
        parser.error("--score none generates no answers, so there is nothing for --controls or --answers")

    from mllm import testing
    from mllm.assistant import Assistant

    settings = EvaluationConfig(
        score=arguments.score,
        samples=arguments.samples,
        max_new_tokens=arguments.max_new_tokens,
        beams=arguments.beams,
        controls=arguments.controls,
    )
    assistant = Assistant(arguments.adapter, arguments.weights, arguments.language, arguments.device)
    data = testing.open_data(assistant, overrides, arguments.part)
    measured, answers = testing.evaluate(assistant, data, arguments.part, settings)
    row = testing.result_row(assistant, data, settings, measured)
    testing.show(row)
    if answers is not None and arguments.answers:
        answers.write(Path(arguments.answers))
    print(f"row: {testing.write(row, Path(arguments.output))}")


if __name__ == "__main__":
    cli.run(main)
