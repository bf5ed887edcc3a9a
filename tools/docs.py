"""Write docs/methods, a page and a figure of every method, and docs/configs.md anew: tools/docs.py."""

from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    cli.Parser("tools/docs.py", description="Write the pages of the methods and of the settings anew.").parse_args(argv)

    from vpeft import pages, reference

    for path in [*pages.write(), *reference.write()]:
        print(path)


if __name__ == "__main__":
    cli.run(main)
