"""A conversation about images at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from mllm.assistant import Assistant
from mllm.conversation import Conversation
from mllm.data.images import read
from mllm.generate import Decoding
from vpeft.nearest import did_you_mean

HELP = "/image PATH shows an image with the next question, /reset begins anew, /quit ends."
COMMANDS = ("/image", "/reset", "/quit")


class Chat:
    """Answers lines, and does what those that begin with a slash say.

    Args:
        assistant: Answers.
        decoding: How words are chosen.
        images: Shown with the first question.
        out: Answers go there as they are generated, everything else to `err`.
        err: What is wrong with a line; the conversation goes on.

    """

    def __init__(
        self, assistant: Assistant, decoding: Decoding, images: Sequence[Path], out: TextIO, err: TextIO
    ) -> None:
        context = assistant.writing.max_length
        answer = min(decoding.max_new_tokens, context // 2)
        writing = replace(assistant.writing, max_length=context - answer)
        self.talk = Conversation(assistant.model, writing, assistant.look, replace(decoding, max_new_tokens=answer))
        self.shown, self.out, self.err = list(images), out, err

    def ask(self, question: str) -> None:
        """Write the answer, piece by piece.

        Raises:
            ValueError: The question is empty, does not fit, or marks another number of images than are shown.
        """
        if not question.strip() and not self.shown:
            raise ValueError("There is no question; write one, or show an image with it.")
        begun = False
        for piece in self.talk.ask(question, self.shown):
            self.out.write(piece if begun else piece.lstrip())
            self.out.flush()
            begun = begun or bool(piece.strip())
        self.out.write("\n")
        self.out.flush()
        self.shown = []

    def take(self, line: str) -> bool:
        """Do what a line says, and whether the conversation goes on."""
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return False
        try:
            self._do(command, rest.strip(), line)
        except ValueError as error:
            print(f"error: {error}", file=self.err)
        return True

    def _do(self, command: str, rest: str, line: str) -> None:
        if command == "/reset":
            self.talk.turns, self.talk.images, self.shown = [], [], []
        elif command == "/image":
            if not rest:
                raise ValueError("/image needs the path of an image: /image PATH")
            self.shown += readable([rest])
        elif command.startswith("/"):
            raise ValueError(f"There is no {command}; {did_you_mean(command, COMMANDS)} {HELP}")
        elif command:
            self.ask(line.strip())

    def converse(self, next_line: Callable[[], str]) -> None:
        """Take line after line until there is none (EOFError), or one says /quit.

        Ctrl-C (KeyboardInterrupt) stops an answer, which is then no part of the conversation, and ends the
        conversation where there is none.
        """
        while True:
            try:
                line = next_line()
            except (EOFError, KeyboardInterrupt):
                self.out.write("\n")
                return
            try:
                if not self.take(line):
                    return
            except KeyboardInterrupt:
                self.out.write("\n")
                print("stopped; the question is forgotten", file=self.err)


def readable(images: Sequence[str]) -> list[Path]:
    """The paths of images, each of which has been read once.

    Raises:
        UnreadableImage: One of them cannot be.
    """
    paths = [Path(image).expanduser() for image in images]
    for path in paths:
        read(path)
    return paths
