"""Write docs/methods, docs/connectors, a page of each, and docs/configs.md anew: tools/docs.py."""

from collections.abc import Sequence

from vpeft import cli


def main(argv: Sequence[str]) -> None:
    cli.Parser(
        "tools/docs.py", description="Write the pages of the methods, the connectors and the settings anew."
    ).parse_args(argv)

    from mllm import pages as connectors
    from vpeft import pages, reference

    for path in [*pages.write(), *connectors.write(), *reference.write()]:
        print(path)


if __name__ == "__main__":
    cli.run(main)
