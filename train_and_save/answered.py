"""What the service would answer about pictures, for code that scores models here."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train_and_save import datasets
from train_and_save.datasets import DataError
from vision.core.errors import VisionError
from vision.core.look import Question, decode_in_thread, in_process, look_through
from vision.core.predictor import Predictor
from vision.core.schemas import Options
from vision.tasks import TASKS


def answered(model: Predictor, folder: Path, paths: Sequence[Path], options: Options) -> list[Any]:
    """What the service would answer about each picture. Raises DataError where it would answer an error."""
    task = TASKS[model.card.task]
    questions = {task.name: Question(in_process(task, model, folder), options)}
    pictures = (path.read_bytes() for path in tqdm(paths, desc=f"{model.card.name}, pictures", unit="picture"))

    decode = partial(decode_in_thread, limits=datasets.LIMITS)

    async def look_at_all() -> list[Any]:
        results: list[Any] = []
        async for seen in look_through(pictures, questions, decode=decode):
            result = seen if isinstance(seen, VisionError) else seen.results[task.name]
            if isinstance(result, VisionError):
                raise DataError(f"{paths[len(results)]}: {result.message}")
            results.append(result)
        return results

    return asyncio.run(look_at_all())
