"""Search NOAH's best subnet under a budget: tools/search.py CONFIG [--key value ...]; --help lists the keys."""

from collections.abc import Sequence

from vpeft import cli, search_settings


def main(argv: Sequence[str]) -> None:
    config, settings = search_settings.parse(argv)
    # Slow to import, so after the settings are known to be right.
    from vpeft import search

    search.search(config, settings)


if __name__ == "__main__":
    cli.run(main)
