"""Methods x tasks x seeds: tools/suite.py CONFIG [CONFIG ...] --tasks all --seeds 5 [--sweep lr,wd] [--key value]."""

from collections.abc import Sequence

from vpeft import cli
from vpeft.suite import settings


def main(argv: Sequence[str]) -> int:
    request = settings.parse(argv)
    # Slow to import, so after the command line is known to be right.
    from vpeft.suite import command

    return command.run(request) if isinstance(request, settings.Request) else command.status(request)


if __name__ == "__main__":
    cli.run(main)
