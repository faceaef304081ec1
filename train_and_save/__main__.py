"""Make or fetch models, save them into the BentoML model store, and measure them.

Commands that save print NAME=value lines: the settings with which `bentoml serve` serves what was saved.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from train_and_save import Origin, UserError, starter
from vision.bento import store
from vision.core import device
from vision.settings import PREFIX, SETTINGS
from vision.tasks import TASKS

# Each command imports what it needs itself: --help, list and a start with all models saved should not wait for torch.


def main() -> None:
    arguments = _parser().parse_args()
    # Nothing is fetched but through the hub client; what a user can mend is said by us, in one line.
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        store.check_home()
    except ValueError as error:
        sys.exit(str(error))
    try:
        arguments.run(arguments)
    except UserError as error:
        sys.exit(f"{arguments.command}: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"{arguments.command}: {error.name} is not installed; `make train` installs what this command needs.")


def save_starters(_: argparse.Namespace) -> None:
    _print_settings(starter.save())


def save_from_hub(arguments: argparse.Namespace) -> None:
    from train_and_save.bring import hub

    _need_torch()  # before gigabytes are fetched
    wanted = {default: task for task, default in hub.DEFAULTS.items() if arguments.task in (None, task)}
    if arguments.name is not None:
        wanted = {arguments.name: arguments.task}
    for name, task in wanted.items():
        path, origin = hub.download(name, arguments.revision)
        _save_folder(path, task, origin)


def save_from_path(arguments: argparse.Namespace) -> None:
    path: Path = arguments.path
    _save_folder(path, arguments.task, Origin(arguments.name or path.stem, arguments.source, arguments.licence))


def _need_torch() -> None:
    if not device.has_torch():
        raise ModuleNotFoundError(name="torch")


def _save_folder(path: Path, task: str | None, origin: Origin) -> None:
    from train_and_save.bring import folder

    _print_settings([folder.save(path, task, origin)])


def train(arguments: argparse.Namespace) -> None:
    from train_and_save.train import own as train

    tag = train.train(
        arguments.task,
        arguments.data,
        name=arguments.name,
        base=arguments.base,
        frozen=arguments.frozen,
        epochs=arguments.epochs,
        seed=arguments.seed,
        device=arguments.device,
        work=arguments.work,
    )
    _print_settings([tag])


def evaluate(arguments: argparse.Namespace) -> None:
    from train_and_save.measure import evaluate

    figures = evaluate.evaluate(
        arguments.model, arguments.data, arguments.out, device=arguments.device, limit=arguments.limit
    )
    _print_figures(figures, arguments.out)


def compare(arguments: argparse.Namespace) -> None:
    from train_and_save.measure import evaluate

    differences = evaluate.compare(
        arguments.a, arguments.b, arguments.data, arguments.out, device=arguments.device, limit=arguments.limit
    )
    _print_figures(differences, arguments.out)


def optimize(arguments: argparse.Namespace) -> None:
    from train_and_save.graphs import optimize

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = "cuda:0" if arguments.device == "cuda" else arguments.device
    made = optimize.optimize(
        arguments.model, arguments.data, device, SETTINGS.engine_dir, limit=arguments.limit, compiles=arguments.compile
    )
    print(optimize.describe(made))


def list_models(_: argparse.Namespace) -> None:
    """Print what the store holds: an asterisk marks what the settings serve."""
    served = {store.resolve(tag) for task in TASKS for tag in SETTINGS.models(task)}
    for tag, card in store.saved():
        mark = "*" if tag in served else " "
        measured = ", ".join(f"{name} {value:g}" for name, value in list(card.metrics.items())[:2])
        print(f"{mark} {card.task:<15}{tag:<45}{store.size(tag) / 1e6:>8.1f} MB  {measured}")


def prune(arguments: argparse.Namespace) -> None:
    """Remove the older versions of each name; what the settings serve stays."""
    served = {store.resolve(tag) for task in TASKS for tag in SETTINGS.models(task)}
    newest = {store.resolve(card.name) for _, card in store.saved()}
    for tag in [tag for tag, _ in store.saved() if tag not in served | newest]:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {tag}")
        if not arguments.dry_run:
            store.remove(tag)


def remake(arguments: argparse.Namespace) -> None:
    from train_and_save.starter import captioner as starter_captioner
    from train_and_save.starter import convert
    from train_and_save.starter import graphs as starter_graphs

    match arguments.task:
        case "classification":
            convert.classification(arguments.source, starter.CLASSIFICATION)
        case "captioning":
            if arguments.network is None:
                raise UserError("captioning needs EfficientNet-Lite2's checkpoint behind PHOTOS.")
            print(starter_captioner.train(arguments.source, arguments.network, starter.CAPTIONING))
        case "detection":
            convert.detection(arguments.source, starter.DETECTION)
    starter_graphs.write(arguments.task)


def _print_figures(figures: dict[str, float], report: Path) -> None:
    for name, value in figures.items():
        print(f"{name:<24}{value:.6g}")
    print(report)


def _print_settings(tags: list[str]) -> None:
    for tag in tags:
        print(f"{PREFIX}{store.read_card(store.folder(tag)).task.upper()}_MODEL={tag}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train_and_save", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("starter", help="save the starters that ship with the code; what is there stays")
    command.set_defaults(run=save_starters)

    command = commands.add_parser("hub", help="download production models by name and save them; all three by default")
    command.add_argument("--task", choices=TASKS, help="only this task's default, or what the named model must be for")
    command.add_argument("--name", help="owner/repository, or owner/repository/file.pt for a YOLO")
    command.add_argument("--revision", help="branch, tag or commit; the newest by default, pinned to its commit")
    command.set_defaults(run=save_from_hub)

    command = commands.add_parser("path", help="save a model from a Hugging Face folder or an Ultralytics .pt")
    command.add_argument("path", type=_existing)
    command.add_argument("--task", choices=TASKS, help="what the model must be for")
    command.add_argument("--name", help="what to call it; by default as its folder")
    command.add_argument("--source", default="a folder", help="where it comes from, for its card")
    command.add_argument("--licence", default="not stated", help="under which terms, for its card")
    command.set_defaults(run=save_from_path)

    command = commands.add_parser("train", help="train a model of your own and save it")
    command.add_argument("task", choices=TASKS)
    command.add_argument(
        "data", type=_existing, help="a folder a class; pictures with YOLO or COCO boxes, or with captions: README.md"
    )
    command.add_argument("--name", required=True, help="what to call it")
    command.add_argument(
        "--base", help="what to start from: a saved tag or a folder, by default the starter; or an Ultralytics .yaml"
    )
    command.add_argument("--frozen", action="store_true", help="train the head only: minutes on a laptop")
    command.add_argument("--epochs", type=int, default=10, help="at most; a frozen classifier needs none")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    command.add_argument("--work", type=Path, default=Path("build/train"), help="checkpoints; the same call resumes")
    command.set_defaults(run=train)

    command = commands.add_parser("evaluate", help="measure a saved model on a labelled folder; writes a report")
    command.add_argument("model", help="its tag, name or name:version")
    _add_measuring(command)
    command.set_defaults(run=evaluate)

    command = commands.add_parser("compare", help="measure two saved models on the same pictures; writes a report")
    command.add_argument("a")
    command.add_argument("b")
    _add_measuring(command)
    command.set_defaults(run=compare)

    command = commands.add_parser("optimize", help="measure and compile a saved model for this machine's GPU")
    command.add_argument("model", help="its tag, name or name:version")
    command.add_argument("data", type=_existing, help="photographs to compare answers on; a detector's with boxes")
    command.add_argument("--device", default="cuda", help="cuda, or cuda:1 for the second GPU")
    command.add_argument("--limit", type=int, default=500, help="only so many photographs")
    command.add_argument("--no-compile", dest="compile", action="store_false", help="choose the precision only")
    command.set_defaults(run=optimize)

    commands.add_parser("list", help="what the store holds").set_defaults(run=list_models)
    command = commands.add_parser("prune", help="remove older versions that are not served")
    command.add_argument("--dry-run", action="store_true", help="only say what would go")
    command.set_defaults(run=prune)

    command = commands.add_parser("remake", help="make a starter's shipped files again from where they came from")
    command.add_argument("task", choices=TASKS)
    command.add_argument("source", type=_existing, help="train_and_save/starter/README.md says what")
    command.add_argument("network", type=_existing, nargs="?", help="captioning: EfficientNet-Lite2's checkpoint")
    command.set_defaults(run=remake)
    return parser


def _existing(name: str) -> Path:
    """A path that is there: who mistypes one should not wait for torch to be told."""
    if not Path(name).exists():
        raise argparse.ArgumentTypeError(f"there is no {name}")
    return Path(name)


def _add_measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=_existing, help="labelled pictures, laid out as for train")
    command.add_argument("--out", type=Path, default=Path("build/report.html"))
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    command.add_argument("--limit", type=int, help="only so many pictures")


if __name__ == "__main__":
    main()
