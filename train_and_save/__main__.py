"""Make or fetch models and save them into the BentoML model store: python -m train_and_save --help"""

import argparse
from pathlib import Path

from train_and_save import starter


def main() -> None:
    arguments = _parser().parse_args()
    match arguments.command:
        case "starter":
            for tag in starter.save():
                print(tag)
        case "remake":
            _remake(arguments.task, arguments.source)


def _remake(task: str, source: Path) -> None:
    # Imported late, so that --help and a start with all models saved do not wait for torch.
    from train_and_save import convert, starter_captioner

    match task:
        case "classification":
            convert.classification(source, starter.CLASSIFICATION)
        case "captioning":
            print(starter_captioner.train(source, starter.CLASSIFICATION, starter.CAPTIONING))
        case "detection":
            convert.detection(source, starter.DETECTION)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train_and_save", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("starter", help="save the starters that ship with the code; what is there already stays")
    remake = commands.add_parser("remake", help="make a starter's shipped files again from where they came from")
    remake.add_argument("task", choices=["classification", "captioning", "detection"])
    remake.add_argument(
        "source", type=Path, help="a checkpoint or photographs: train_and_save/starter/README.md names them"
    )
    return parser


if __name__ == "__main__":
    main()
