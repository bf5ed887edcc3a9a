"""Ask a multimodal adapter about images: tools/chat.py ADAPTER [--image FILE ...] [--ask "What is this?"]."""

import sys
from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/chat.py",
        description="A conversation, turn by turn; without --ask, questions are read line by line. /image PATH shows "
        "another image with the next question, /reset begins anew, /quit (or Ctrl-D) ends; Ctrl-C stops an answer.",
        allow_abbrev=False,
    )
    cli.add_model_arguments(parser)
    cli.add_language_argument(parser)
    cli.add_device_argument(parser)
    parser.add_argument("--image", metavar="FILE", action="append", default=[], help="shown first; may be repeated")
    parser.add_argument("--ask", metavar="QUESTION", help="answer this and end")
    parser.add_argument("--system", metavar="TEXT", help="in place of the system text of the training")
    parser.add_argument("--max_new_tokens", type=cli.at_least_one, metavar="N", default=256, help="default 256")
    parser.add_argument("--temperature", type=float, metavar="T", help="draw words instead of taking the likeliest")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of --temperature (default 0)")
    arguments = parser.parse_args(argv)

    from mllm.assistant import Assistant
    from mllm.chat import HELP, Chat, readable
    from mllm.generate import Decoding

    decoding = Decoding(
        max_new_tokens=arguments.max_new_tokens,
        sample=arguments.temperature is not None,
        temperature=1.0 if arguments.temperature is None else arguments.temperature,
        seed=arguments.seed,
    )
    images = readable(arguments.image)
    assistant = Assistant(arguments.adapter, arguments.weights, arguments.language, arguments.device, arguments.system)
    chat = Chat(assistant, decoding, images, sys.stdout, sys.stderr)
    if arguments.ask is not None:
        chat.ask(arguments.ask)
        return
    on_screen = sys.stdin.isatty()
    if on_screen:
        print(HELP, file=sys.stderr)
    chat.converse(lambda: input("> " if on_screen else ""))


if __name__ == "__main__":
    cli.run(main)
