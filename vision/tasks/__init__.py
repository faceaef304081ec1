"""The tasks: one folder and one entry each. docs/add-a-task.md shows how one is added."""

from vision.core.task import Task
from vision.tasks.captioning.spec import CAPTIONING
from vision.tasks.classification.spec import CLASSIFICATION
from vision.tasks.detection.spec import DETECTION

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, CAPTIONING, DETECTION)}
