"""From what was seen in the pictures of a request to what they say together."""

from collections.abc import Sequence

from vision.bento.served import rules
from vision.core.errors import VisionError
from vision.core.look import Seen
from vision.core.schemas import Failure
from vision.insights.pictures import Picture
from vision.insights.profile import Insights, insights


def together(seen: Sequence[Seen | VisionError], min_score: float) -> Insights:
    """Say what pictures show together, in their order."""
    return insights([_picture(one) for one in seen], rules(), min_score)


def _picture(seen: Seen | VisionError) -> Picture:
    if isinstance(seen, VisionError):
        return Picture.failed(Failure.of(seen).error)
    results = {word: one.model_dump() for word, one in seen.results.items() if not isinstance(one, VisionError)}
    return Picture.of(seen.size, results, seen.quality)
