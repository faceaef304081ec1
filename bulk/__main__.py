"""Score whole collections of pictures with the models of the store, without HTTP."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

from bulk import OFFLINE, EndedError, UserError, questions
from bulk.addresses import is_remote
from bulk.questions import flag
from vision.bento import store
from vision.settings import SETTINGS
from vision.tasks import TASKS

if TYPE_CHECKING:
    from bulk.progress import Progress
    from bulk.run import Run

    Engine = Callable[[Run, Progress], int]
    """Scores what a run has left; returns how many pictures were known before."""

# Each command imports what it needs itself: --help should wait for nothing.


def main() -> int:
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    os.environ |= OFFLINE
    try:
        store.check_home()
        code: int = arguments.run(arguments)
    except UserError as error:
        return _say(2, f"{arguments.command}: {error}")
    except EndedError as error:
        return _say(1, f"{arguments.command}: {error} The same command goes on from here.")
    except ModuleNotFoundError as error:
        return _say(2, f"{arguments.command}: {error.name} is not installed; `make score` installs what this needs.")
    return code


def _say(code: int, line: str) -> int:
    print(line, file=sys.stderr)
    return code


def score(arguments: argparse.Namespace) -> int:
    from bulk import run
    from bulk.listing import Columns, listing
    from bulk.places import place
    from bulk.progress import Progress, by_kind
    from bulk.rows import MANIFEST

    wanted = _wanted(arguments)
    columns = Columns(arguments.path_column, arguments.id_column, arguments.group_column)
    out = place(arguments.out)
    if MANIFEST not in out.names():
        listing(arguments.photos, columns)  # who mistypes it should not wait for models
    cards = questions.cards(wanted)
    with _engine(wanted, arguments) as scored, out.locked():
        begun = run.begin(out, arguments.photos, columns, wanted, arguments.format, arguments.shard_rows, cards)
        if arguments.retry_errors:
            run.retry_errors(begun)
        progress = Progress(begun.left())
        known = 0
        if begun.todo():
            with progress:
                known = scored(begun, progress)
            begun.finish()
    print(
        f"{progress.pictures:,} pictures in {progress.seconds:,.1f} s, {progress.rate:,.1f}/s; {known:,} known before; "
        f"{begun.listed.entries:,} in {out.name}, {by_kind(+begun.errors)}"
    )
    if not begun.todo():
        return 0
    return _say(130, f"{begun.left():,} pictures are not scored yet. The same command goes on from here.")


def plan(arguments: argparse.Namespace) -> int:
    from bulk import plan, processes
    from bulk.listing import Columns, listing
    from bulk.score import Scorer
    from vision.core.decoders import keep_freed_memory

    columns = Columns(arguments.path_column, arguments.id_column, arguments.group_column)
    found = listing(arguments.photos, columns)
    wanted = _wanted(arguments)
    keep_freed_memory()
    asked = questions.load_all(wanted, arguments.device, SETTINGS.engine_dir)

    async def go() -> plan.Estimate:
        scorer = Scorer(asked, None, SETTINGS.limits(), arguments.stall_seconds)
        try:
            return await plan.plan(found.entries, arguments.sample, scorer)
        finally:
            await scorer.close()

    print(asyncio.run(go()).told(sorted({1, *arguments.machines}), arguments.machine_hour))
    if workers := processes.default(wanted, arguments.device):
        print(f"This was measured in one process. `score` has {workers + 1} here, and is the faster.")
    return 0


@contextmanager
def _engine(wanted: Sequence[questions.Wanted], arguments: argparse.Namespace) -> Iterator["Engine"]:
    from bulk import cache, processes

    if arguments.engine == "ray":
        yield _on_ray(wanted, arguments)
        return
    workers = arguments.workers if arguments.workers is not None else processes.default(wanted, arguments.device)
    if not workers:
        yield _here(wanted, arguments)
        return
    order = processes.Order(
        out=arguments.out,
        wanted=tuple(wanted),
        cache=None if arguments.no_cache else arguments.cache or cache.usual(),
        limits=SETTINGS.limits(),
        stall_seconds=arguments.stall_seconds,
    )
    with processes.Models(wanted, arguments.device, SETTINGS.engine_dir) as models:
        yield lambda begun, progress: asyncio.run(processes.score(begun, order, models, workers, progress))


def _here(wanted: Sequence[questions.Wanted], arguments: argparse.Namespace) -> "Engine":
    """Load the models in this process; return what scores with them."""
    from bulk import cache, run
    from bulk.score import Scorer
    from vision.core.decoders import keep_freed_memory

    keep_freed_memory()
    asked = questions.load_all(wanted, arguments.device, SETTINGS.engine_dir)
    path = None if arguments.no_cache else arguments.cache or cache.usual()

    async def go(begun: "Run", progress: "Progress") -> int:
        kept = cache.Cache(path, cache.PIXELS_KEY, [one.key for one in asked]) if path else None
        scorer = Scorer(asked, kept, SETTINGS.limits(), arguments.stall_seconds)
        try:
            await run.score(begun, scorer, progress)
        finally:
            await scorer.close()
        return scorer.known

    return lambda begun, progress: asyncio.run(go(begun, progress))


def _on_ray(wanted: Sequence[questions.Wanted], arguments: argparse.Namespace) -> "Engine":
    """Join the cluster; return what scores there."""
    from bulk import cluster

    order = cluster.Order(
        out=arguments.out if is_remote(arguments.out) else os.path.abspath(arguments.out),  # noqa: PTH100
        wanted=tuple(wanted),
        device="cpu" if arguments.device == "auto" and not arguments.gpus else arguments.device,
        cache=None if arguments.cache is None else str(arguments.cache.absolute()),
        keeps=not arguments.no_cache,
        limits=SETTINGS.limits(),
        stall_seconds=arguments.stall_seconds,
    )
    size = cluster.join(arguments.address, arguments.actors, arguments.cpus, arguments.gpus)
    return lambda begun, progress: asyncio.run(cluster.score(begun, order, size, progress))


def insights(arguments: argparse.Namespace) -> int:
    from bulk import insights
    from bulk.groups import Results

    results = Results(arguments.results, arguments.by)
    rows, grouped = results.count()
    out = arguments.out or arguments.results / f"insights-by-{arguments.by}.parquet"
    count = insights.write(results, SETTINGS.insights_rules, arguments.min_score, out)
    print(f"{count:,} groups of {grouped:,} pictures in {out}; {rows - grouped:,} pictures have no {arguments.by}")
    return 0


def impact(arguments: argparse.Namespace) -> int:
    from bulk import impact, impact_report
    from bulk.groups import Results

    results = Results(arguments.results, arguments.by)
    outcomes = impact.read_outcomes(arguments.outcomes, arguments.by, arguments.outcome, arguments.covariates)
    found = impact.impact(results, SETTINGS.insights_rules, outcomes, arguments.support, arguments.draws)
    out = arguments.out or arguments.results / f"impact-{arguments.outcome}"
    out.mkdir(parents=True, exist_ok=True)
    impact.write(found, out)
    impact_report.write(found, out)
    kept = sum(one.survives for one in found.findings)
    print(
        f"{kept} of {len(found.findings)} signals go with {found.outcome} in {found.groups:,} groups; "
        f"{found.without_outcome:,} groups have no {found.outcome}, {found.without_pictures:,} no pictures. "
        f"{out / 'impact.html'} shows them."
    )
    return 0


def export(arguments: argparse.Namespace) -> int:
    from bulk import export
    from bulk.groups import Results

    out = arguments.out or arguments.results / arguments.to
    count, names = export.export(Results(arguments.results), arguments.to, out)
    print(f"{count:,} pictures for {arguments.to} in {out}: {', '.join(names)}")
    return 0


def summary(arguments: argparse.Namespace) -> int:
    from bulk import places, summary
    from bulk.groups import Results

    results = Results(arguments.results)
    found = summary.summary(results)
    out = places.made(arguments.out or arguments.results / "summary").path
    summary.write(results, found, out)
    print(f"{found.pictures:,} pictures, {found.failed:,} failed. {out / 'summary.html'} shows them.")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    from bulk import apart, compare, places
    from bulk.groups import Results

    a, b = Results(arguments.a), Results(arguments.b)
    found = compare.compare(a, b)
    out = places.made(arguments.out or arguments.b / f"beside-{arguments.a.resolve().name}").path
    if isinstance(found, apart.Apart):
        compare.write_apart(a, b, found, out)
        print(f"No picture in common: each run's own are compared. {out / 'compare.html'} shows them.")
        return 0
    compare.write(a, b, found, out)
    differ = ", ".join(f"{one.differ:,} of {one.pictures:,} differ in {one.name}" for one in found.features)
    print(f"{found.pictures:,} pictures in both: {differ}. {out / 'compare.html'} shows them.")
    return 0


def _wanted(arguments: argparse.Namespace) -> list[questions.Wanted]:
    given = {name: getattr(arguments, name) for name in _option_fields()}
    options = {name: value for name, value in given.items() if value is not None}
    models = {task: SETTINGS.models(task)[0] for task in TASKS}
    features = [word for some in arguments.features or TASKS for word in some.split(",")]
    return questions.wanted(features, options, models)


def _option_fields() -> dict[str, Any]:
    return {name: field for task in TASKS.values() for name, field in task.options.model_fields.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bulk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("score", help="score a collection; the same command goes on with what was not done")
    command.set_defaults(run=score)
    _add_photos(command)
    command.add_argument("--out", required=True, help="a folder, or an address that fsspec opens: s3://bucket/results")
    command.add_argument("--format", choices=["parquet", "jsonl"], default="parquet")
    command.add_argument("--shard-rows", type=_positive, default=1000, help="rows of a file (1000)")
    command.add_argument("--retry-errors", action="store_true", help="score again what failed and may succeed now")
    command.add_argument("--cache", type=Path, help="where answers are kept; by default in ~/.cache/vision")
    command.add_argument("--no-cache", action="store_true", help="keep none")
    _add_questions(command)
    command.add_argument("--engine", choices=["here", "ray"], default="here", help="here, or on a Ray cluster (here)")
    command.add_argument(
        "--workers",
        type=_count,
        help="processes that read and decode, beside one a GPU; by default one a core where there is a GPU, else none",
    )
    command.add_argument(
        "--address", help="of the cluster's head, HOST:PORT; by default RAY_ADDRESS, or this machine's"
    )
    command.add_argument("--gpus", type=float, default=0, help="of each of Ray's actors; 0.5: two share one (0)")
    command.add_argument("--cpus", type=_positive, help="of each actor; by default a machine's, or its GPU's share")
    command.add_argument("--actors", type=_positive, help="by default as many as the cluster has room for now")

    command = commands.add_parser("plan", help="tell what scoring a collection would cost; a sample is scored")
    command.set_defaults(run=plan)
    _add_photos(command)
    command.add_argument("--sample", type=_positive, default=500, help="pictures that are scored (500)")
    command.add_argument("--machines", type=_positive, nargs="+", default=[], help="numbers of machines like this one")
    command.add_argument("--machine-hour", type=float, help="what an hour of a machine costs")
    _add_questions(command)

    command = commands.add_parser("insights", help="say what the pictures of each group show together, with tips")
    command.set_defaults(run=insights)
    _add_results(command)
    command.add_argument("--min-score", type=float, default=0.3, help="what scores less does not count (0.3)")
    command.add_argument("--out", type=Path, help="a Parquet file; by default RESULTS/insights-by-BY.parquet")

    command = commands.add_parser("impact", help="find what goes with an outcome of groups: likes, matches, sales")
    command.set_defaults(run=impact)
    _add_results(command)
    command.add_argument("outcomes", type=Path, help="a CSV with a row a group: its name, the outcome, covariates")
    command.add_argument("--outcome", required=True, help="the column of numbers that is to be explained")
    command.add_argument(
        "--covariates", type=_names, default=[], help="numeric columns that are held equal, by commas, as are pictures"
    )
    command.add_argument(
        "--support", type=_positive, default=20, help="groups with a signal, and without, at least (20)"
    )
    command.add_argument("--draws", type=_positive, default=1000, help="of the bootstrap (1000)")
    command.add_argument("--out", type=Path, help="a folder; by default RESULTS/impact-OUTCOME")

    command = commands.add_parser("export", help="hand results to the tools that people label and look with")
    command.set_defaults(run=export)
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("--to", required=True, choices=["coco", "label-studio", "fiftyone"])
    command.add_argument("--out", type=Path, help="a folder; by default RESULTS/coco and so on")

    command = commands.add_parser("summary", help="show a collection on a page: labels, words, scores, errors, copies")
    command.set_defaults(run=summary)
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("--out", type=Path, help="a folder; by default RESULTS/summary")

    command = commands.add_parser(
        "compare", help="show where two runs differ: over the same pictures the worst first, or two weeks' rates"
    )
    command.set_defaults(run=compare)
    command.add_argument("a", type=Path, help=RESULTS)
    command.add_argument("b", type=Path, help="another: of another model, other options, another version")
    command.add_argument("--out", type=Path, help="a folder; by default B/beside-A")
    return parser


RESULTS = "a folder that `score` wrote as Parquet"


def _add_results(command: argparse.ArgumentParser) -> None:
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("--by", default="group", help="the column that groups pictures, also a carried one (group)")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _add_photos(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "photos",
        help="a folder tree; a .txt, .csv, .tsv or .parquet manifest; a WebDataset's .tar; or an address of such",
    )
    command.add_argument("--path-column", help="of a manifest; by default path, uri, url, file, filename or image")
    command.add_argument("--id-column", help="of a manifest; by default id, or else the row's number")
    command.add_argument("--group-column", help="of a manifest; by default group, if it has one")


def _add_questions(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--features", action="extend", nargs="+", help=f"of {', '.join(TASKS)}, or TASK:MODEL; by default all three"
    )
    for name, field in _option_fields().items():
        several = "append" if get_origin(field.annotation) is not None and "list" in str(field.annotation) else "store"
        command.add_argument(flag(name), action=several, help=field.description)
    command.add_argument("--device", default=SETTINGS.device, help="auto, cpu, cuda (all GPUs) or cuda:1")
    command.add_argument(
        "--stall-seconds", type=float, default=60, help="after which a picture's source is taken for gone (60)"
    )


def _positive(text: str) -> int:
    return _count(text, least=1)


def _count(text: str, least: int = 0) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more")
    return number


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread that waits for a share that stalls would never end
