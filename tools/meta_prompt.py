"""Train DAM-VP's meta-prompt: tools/meta_prompt.py CONFIG --tasks a,b,c -o meta.safetensors [--key value ...]."""

import argparse
from collections.abc import Sequence

from vpeft import cli, config


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(
        "tools/meta_prompt.py",
        usage="%(prog)s CONFIG --tasks TASK,TASK,... -o FILE [--key value ...]",
        description="One prompt from several tasks, with Reptile; a run starts from it with --method.meta FILE.",
        epilog="All other keys are those of tools/train.py --help, given after CONFIG; optim and train are not used.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("config", metavar="CONFIG", help="of dam_vp, such as configs/vtab/dam_vp.yaml")
    parser.add_argument("--tasks", metavar="TASK,...", required=True, help="values of data.task")
    parser.add_argument("-o", dest="file", metavar="FILE", required=True, help="the meta-prompt, *.safetensors")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the smallest task (default 200)")
    parser.add_argument("--inner_steps", type=int, metavar="N", help="steps a task and round (default 4)")
    parser.add_argument("--step", type=float, metavar="E", help="of the meta-prompt towards them (default 0.5)")
    parser.add_argument("--lr", type=float, help="of the prompts (default 1.0)")
    parser.add_argument("--head_lr", type=float, help="of the tasks' heads (default 0.1)")
    parser.add_argument("--weight_decay", type=float, help="of the prompts (default 1e-4)")
    parser.add_argument("--device", default=None, help="cpu or cuda; by default cuda where there is one")
    known, others = parser.parse_known_args(argv)
    given = vars(known)
    file, output, device, tasks = (given.pop(key) for key in ("config", "file", "device", "tasks"))
    tasks = cli.words(tasks)
    # The first task decides, with data.root, whether the config's embedded section holds.
    words = [file, *others, *(["--data.task", tasks[0]] if tasks else [])]
    settings = config.classifying(config.parse(words, "tools/meta_prompt.py"), file)

    from vpeft import meta_prompt

    meta_prompt.meta_train(settings, tasks, output, meta_prompt.Settings(**given), device)


if __name__ == "__main__":
    cli.run(main)
