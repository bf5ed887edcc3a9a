"""Train an adapter: tools/train.py CONFIG [--key value ...]; --help lists the keys."""

from collections.abc import Sequence

from vpeft import cli, config


def main(argv: Sequence[str]) -> None:
    settings = config.parse(argv)
    # Slow to import, so after the settings are known to be right.
    from vpeft import run

    run.train(settings)


if __name__ == "__main__":
    cli.run(main)
