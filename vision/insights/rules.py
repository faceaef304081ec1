"""Rules: what a profile's pictures must show for a tip. They speak of pictures, never of traits of persons.

docs/insights.md explains the file and says why.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vision.core import subject
from vision.core.images import ENOUGH
from vision.core.subject import HEAD
from vision.insights.pictures import DETECTION, QUALITY, Picture, Sight, near_duplicates

SHIPPED = Path(__file__).with_name("rules.yaml")

LEAST_LABEL, LEAST_OBJECT = 0.05, 0.25
"""Pictures are asked for nothing that scores less."""

Feature = Annotated[str, Field(pattern=r"^\w+(:[^@]+)?$")]
"""`classification`, `detection`, or one of another model, as `classification:dogs`."""
Score = Annotated[float, Field(ge=LEAST_LABEL, le=1)]
ObjectScore = Annotated[float, Field(ge=LEAST_OBJECT, le=1)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Severity = Literal["info", "advice", "warning"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(Strict):
    at_least: float | None = Field(None, ge=0)
    at_most: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a range has at_least, at_most, or both")
        return self

    def holds(self, value: float) -> bool:
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


def head_pixels(person: subject.Box, size: tuple[int, int]) -> float:
    """Return the smaller side of a person's head, once the picture is as small as models see it."""
    left, top, right, bottom = subject.head(person, size)
    return min(right - left, bottom - top) * min(1, ENOUGH / max(size))


class Sunglasses(Strict):
    """How sunglasses are recognised: by labels of the main subject's head whose scores sum up to `min_score`."""

    feature: Annotated[str, Field(pattern=rf"^\w+(:[^@]+)?{HEAD}$")]
    labels: list[Text] = Field(min_length=1, max_length=1_000)
    min_score: Score
    min_head: Annotated[int, Field(ge=1)] = 1
    """Pixels that a head must be wide and high, once its picture is as small as models see it; else nobody can tell."""
    where_served: bool = False
    """Whether to leave this out, and the rules about it, where the feature's model is not served."""

    def worn(self, picture: Picture, person: Sight | None) -> bool | None:
        """Say whether they are seen on this person, the main subject; None where it cannot be told."""
        if self.feature not in picture.seen or person is None or person.box is None:
            return None
        if head_pixels(person.box, picture.size) < self.min_head:
            return None
        return sum(one.score for one in picture.seen[self.feature] if one.label in self.labels) >= self.min_score


@dataclass(frozen=True)
class Profile:
    """Pictures, and what is known of them together."""

    pictures: Sequence[Picture]
    people: Sequence[Sequence[Sight] | None]
    """In each picture, however unsure; None where nobody looked."""
    subjects: Sequence[Sight | None]
    """The largest person of each picture."""
    worn: Sequence[bool | None]
    """Whether the main subject wears sunglasses; None where it cannot be told."""
    near_duplicates: Sequence[Sequence[int]]

    @classmethod
    def of(cls, pictures: Sequence[Picture], sunglasses: Sunglasses | None) -> Self:
        people = [
            subject.people(picture.seen[DETECTION], 0) if DETECTION in picture.seen else None for picture in pictures
        ]
        subjects = [subject.main(some or ()) for some in people]
        pairs = zip(pictures, subjects, strict=True)
        worn = [sunglasses.worn(picture, person) if sunglasses else None for picture, person in pairs]
        return cls(pictures, people, subjects, worn, near_duplicates(pictures))

    def counts(self, min_score: float) -> list[int | None]:
        """Return how many people each picture shows; None where nobody looked."""
        return [None if some is None else sum(one.score >= min_score for one in some) for some in self.people]


class Condition(Strict):
    """Judges each picture; holds when enough of the pictures that can be judged are as it says."""

    share: Range | None = None
    """Of the pictures that can be judged, 0-1."""
    pictures: Range | None = None
    """How many; where neither is given, one is enough."""

    @property
    @abstractmethod
    def features(self) -> Sequence[str]:
        """What must have been asked of each picture."""

    @abstractmethod
    def judge(self, profile: Profile) -> Mapping[int, bool]:
        """Say by index of each picture that can be judged whether it is as the condition says."""

    def met_by(self, profile: Profile) -> list[int] | None:
        """Return the indices of the pictures that are so where the condition holds, else None."""
        judged = self.judge(profile)
        found = [index for index, so in judged.items() if so]
        if not judged or (self.share and not self.share.holds(len(found) / len(judged))):
            return None
        enough = self.pictures or (None if self.share else Range(at_least=1))
        return found if enough is None or enough.holds(len(found)) else None


class SeenCondition(Condition):
    """A picture shows one of these labels or objects."""

    about: Literal["seen"]
    feature: Feature
    labels: list[Text] = Field(min_length=1, max_length=1_000)
    min_score: Score = 0.3

    @model_validator(mode="after")
    def _is_asked_for(self) -> Self:
        if self.feature.startswith(DETECTION) and self.min_score < LEAST_OBJECT:
            raise ValueError(f"objects have a min_score of at least {LEAST_OBJECT}")
        return self

    @property
    def features(self) -> Sequence[str]:
        return (self.feature,)

    def judge(self, profile: Profile) -> Mapping[int, bool]:
        wanted = set(self.labels)
        return {
            index: any(one.label in wanted and one.score >= self.min_score for one in picture.seen[self.feature])
            for index, picture in enumerate(profile.pictures)
            if self.feature in picture.seen
        }


class PeopleCondition(Condition):
    """A picture shows so many people."""

    about: Literal["people"]
    count: Range
    min_score: ObjectScore = 0.4

    @property
    def features(self) -> Sequence[str]:
        return (DETECTION,)

    def judge(self, profile: Profile) -> Mapping[int, bool]:
        counts = enumerate(profile.counts(self.min_score))
        return {index: self.count.holds(count) for index, count in counts if count is not None}


class SubjectCondition(Condition):
    """The main subject, the largest person, takes so much of the picture; only pictures with one are judged."""

    about: Literal["subject"]
    area: Range
    """Of the picture, 0-1."""

    @property
    def features(self) -> Sequence[str]:
        return (DETECTION,)

    def judge(self, profile: Profile) -> Mapping[int, bool]:
        return {
            index: self.area.holds(subject.area(person) / (picture.size[0] * picture.size[1]))
            for index, (picture, person) in enumerate(zip(profile.pictures, profile.subjects, strict=True))
            if person
        }


class SunglassesCondition(Condition):
    """The main subject wears sunglasses; only pictures with one are judged."""

    about: Literal["sunglasses"]

    @property
    def features(self) -> Sequence[str]:
        return (DETECTION,)  # and what Rules.sunglasses says

    def judge(self, profile: Profile) -> Mapping[int, bool]:
        return {index: worn for index, worn in enumerate(profile.worn) if worn is not None}


class QualityCondition(Condition):
    """A picture's brightness, contrast or sharpness lies in a range."""

    about: Literal["quality"]
    measure: Literal["brightness", "contrast", "sharpness"]
    value: Range

    @property
    def features(self) -> Sequence[str]:
        return (QUALITY,)

    def judge(self, profile: Profile) -> Mapping[int, bool]:
        return {
            index: self.value.holds(getattr(picture.quality, self.measure))
            for index, picture in enumerate(profile.pictures)
            if picture.quality
        }


class DuplicateCondition(Condition):
    """A picture looks nearly the same as another."""

    about: Literal["near_duplicates"]

    @property
    def features(self) -> Sequence[str]:
        return (QUALITY,)

    def judge(self, profile: Profile) -> Mapping[int, bool]:
        alike = {index for group in profile.near_duplicates for index in group}
        return {index: index in alike for index, picture in enumerate(profile.pictures) if picture.quality}


AnyCondition = Annotated[
    SeenCondition | PeopleCondition | SubjectCondition | SunglassesCondition | QualityCondition | DuplicateCondition,
    Field(discriminator="about"),
]


class Rule(Strict):
    id: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}$")]
    text: Annotated[str, Field(min_length=1, max_length=500)]
    severity: Severity = "advice"
    min_pictures: Annotated[int, Field(ge=1)] = 2
    """Of pictures that could be looked at; with fewer there is no tip."""
    enabled: bool = True
    when: list[AnyCondition] = Field(min_length=1)
    """All must hold."""

    def met_by(self, profile: Profile) -> list[int] | None:
        """Return the indices of the pictures that the tip is about, or None where the rule does not apply."""
        if sum(picture.error is None for picture in profile.pictures) < self.min_pictures:
            return None
        found = set[int]()
        for condition in self.when:
            met = condition.met_by(profile)
            if met is None:
                return None
            found.update(met)
        return sorted(found)


class Rules(Strict):
    sunglasses: Sunglasses | None = None
    rules: list[Rule]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for rule in self.rules:
            about = {condition.about for condition in rule.when}
            if self.sunglasses is None and "sunglasses" in about:
                raise ValueError(f"{rule.id} is about sunglasses, and nothing says how they are recognised")
        seen = set[str]()
        for rule in self.rules:
            if rule.id in seen:
                raise ValueError(f"two rules are called {rule.id}")
            seen.add(rule.id)
        return self

    def __iter__(self) -> Iterator[Rule]:  # type: ignore[override]
        return (rule for rule in self.rules if rule.enabled)

    @property
    def features(self) -> dict[str, str]:
        """The features that the rules in force need, each with who needs it."""
        needed = {self.sunglasses.feature: "sunglasses"} if self.sunglasses else {}
        for rule in self:
            for condition in rule.when:
                needed |= {feature: rule.id for feature in condition.features if feature not in needed}
        return needed

    def without_sunglasses(self) -> "Rules":
        """Leave out what needs to recognise them."""
        rules = [rule for rule in self.rules if all(condition.about != "sunglasses" for condition in rule.when)]
        return Rules(rules=rules)


def load(path: Path) -> Rules:
    """Read a rules file. Raises ValueError, with the file, the line and what is wrong there."""
    try:
        text = path.read_text()
        node = yaml.compose(text, yaml.CSafeLoader)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{path}, line {mark.line + 1 if mark else 1}: {getattr(error, 'problem', error)}") from error
    if node is None:
        raise ValueError(f"{path}, line 1: the file is empty")
    try:
        return Rules.model_validate(yaml.load(text, yaml.CSafeLoader))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = "".join(f"{part}." for part in problem["loc"]).removesuffix(".") or "the file"
        message = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path}, line {_line(node, problem['loc'])}: {where}: {message}") from error
    except yaml.YAMLError as error:  # what composes may still not construct
        raise ValueError(f"{path}: {error}") from error


def _line(node: Any, path: Sequence[int | str]) -> int:
    """Return the line, from 1, on which what pydantic names by `path` stands, or what encloses it."""
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        elif isinstance(node, yaml.MappingNode):
            # pydantic names a union's member, too, which is no key
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                continue
            key, node = found[0]
            line = key.start_mark.line + 1
            continue
        else:
            break
        line = node.start_mark.line + 1
    return line
