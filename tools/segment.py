"""Segment an image into free-text classes: tools/segment.py IMAGE --classes "cat, sofa, floor" [-o OUT.png]."""

from collections.abc import Sequence
from pathlib import Path

from vpeft import cli


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("tools/segment.py", description="Free-text classes in an image, as a picture with a legend.")
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("--classes", required=True, metavar='"A, B, C"', help="names, separated by commas")
    parser.add_argument("--model", help="of an official checkpoint: san_vit_b16 (default) or san_vit_l14")
    parser.add_argument("--weights", metavar="FILE", help="san.safetensors of a run, or an official checkpoint")
    parser.add_argument(
        "--clip", metavar="FILE", help="CLIP's weights, where neither the checkpoint nor a hub has them"
    )
    parser.add_argument(
        "--others",
        choices=("coco", "none"),
        default="coco",
        help="let COCO-Stuff's classes compete, as the official program does (default), or share out every pixel",
    )
    parser.add_argument("-o", "--output", metavar="OUT.png", help="default: IMAGE's name with _segmented.png")
    cli.add_device_argument(parser)
    arguments = parser.parse_args(argv)

    from vpeft import segment
    from vpeft.data.images import decode
    from vpeft.predict import find_device

    classes = segment.parse_classes(arguments.classes)
    output = segment.output_path(arguments.output, Path(arguments.image))
    image = decode(Path(arguments.image))
    device = str(find_device(arguments.device))
    segmenter = segment.Segmenter(arguments.model, arguments.weights, arguments.clip, device)
    labels = segmenter(image, classes, arguments.others)
    segment.overlay(image, labels, classes).save(output)
    for name, share in segment.shares(labels, classes):
        print(f"{share:7.1%}  {name}")
    print(output)
    return 0


if __name__ == "__main__":
    cli.run(main)
