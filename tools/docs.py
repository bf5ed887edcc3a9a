"""Write docs/methods, a page and a figure of every method, anew: tools/docs.py."""

from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    cli.Parser("tools/docs.py", description="Write the pages of the methods anew.").parse_args(argv)

    from vpeft import pages

    for path in pages.write():
        print(path)


if __name__ == "__main__":
    cli.run(main)
