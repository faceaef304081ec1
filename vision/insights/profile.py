"""From the pictures of one profile to what they show, and to tips: a pure function."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from vision.core.schemas import ErrorBody, Quality
from vision.core.subject import HEAD, Box
from vision.insights.pictures import Picture, Sight
from vision.insights.rules import Profile, Rules, Severity

Index = int
"""Of a picture in the profile, from 0."""


class Evidence(BaseModel):
    """Where it was seen best in a picture."""

    picture: Index
    score: float
    box: Box | None = Field(description="x1, y1, x2, y2 in pixels of the picture's size; null for a label.")


class Sighting(BaseModel):
    """A label or an object, and the pictures in which it is seen."""

    feature: str
    label: str
    pictures: int = Field(description="In how many it is seen.")
    share: float = Field(description="Of the pictures that the feature was asked of, 0-1.")
    any: bool = Field(description="Whether it is seen in any picture; true of all that are listed.")
    all: bool
    evidence: list[Evidence] = Field(description="One for each of these pictures, in their order.")


class People(BaseModel):
    """Persons that the detector finds."""

    counts: list[int | None] = Field(description="In each picture; null where nobody could look.")
    pictures: int = Field(description="How many pictures show anybody.")
    most: int = Field(description="In one picture.")


class MainSubject(BaseModel):
    """The largest person of each picture."""

    boxes: list[Box | None] = Field(description="In each picture; null where nobody is seen.")
    sunglasses: list[bool | None] = Field(
        description="Whether sunglasses are seen; null where nobody is seen, or the head is too small to tell. "
        "False does not show that none are worn: what ships sees about one of five that are, "
        "and is wrong about one of seven that it sees."
    )
    ever_without_sunglasses: bool | None = Field(
        description="Whether `sunglasses` is false of any picture, and as unsure as that; "
        "null where it cannot be told of any."
    )


class Failed(BaseModel):
    picture: Index
    error: ErrorBody


class Tip(BaseModel):
    id: str = Field(description="The rule's.")
    severity: Severity
    text: str
    pictures: list[Index] = Field(description="Those that it is about.")


class Insights(BaseModel):
    """What the pictures of one profile show. Pictures are named by their index, from 0."""

    pictures: int = Field(description="How many were given.")
    answered: int = Field(description="How many could be looked at; shares are of these.")
    seen: list[Sighting] = Field(description="What is seen in most pictures first.")
    people: People
    main_subject: MainSubject
    quality: list[Quality | None] = Field(description="Of each picture.")
    near_duplicates: list[list[Index]] = Field(description="Groups of pictures that look the same.")
    failed: list[Failed]
    tips: list[Tip] = Field(description="In the order of the rules.")


def insights(pictures: Sequence[Picture], rules: Rules, min_score: float = 0.3) -> Insights:
    """Say what pictures show together. What scores less than `min_score` does not count; rules have own scores."""
    profile = Profile.of(pictures, rules.sunglasses)
    counts = profile.counts(min_score)
    told = [worn for worn in profile.worn if worn is not None]
    return Insights(
        pictures=len(pictures),
        answered=sum(picture.error is None for picture in pictures),
        seen=_sightings(pictures, min_score),
        people=People(counts=counts, pictures=sum(map(bool, counts)), most=max(filter(None, counts), default=0)),
        main_subject=MainSubject(
            boxes=[subject.box if subject else None for subject in profile.subjects],
            sunglasses=list(profile.worn),
            ever_without_sunglasses=not all(told) if told else None,
        ),
        quality=[picture.quality for picture in pictures],
        near_duplicates=[list(group) for group in profile.near_duplicates],
        failed=[Failed(picture=at, error=one.error) for at, one in enumerate(pictures) if one.error],
        tips=[
            Tip(id=rule.id, severity=rule.severity, text=rule.text, pictures=met)
            for rule in rules
            if (met := rule.met_by(profile)) is not None
        ],
    )


def _sightings(pictures: Sequence[Picture], min_score: float) -> list[Sighting]:
    """What is seen in most pictures first, then by feature and label."""
    asked: dict[str, int] = {}
    found: dict[tuple[str, str], dict[Index, Sight]] = {}
    for index, picture in enumerate(pictures):
        for feature, seen in picture.seen.items():
            if feature.endswith(HEAD):
                continue  # not of the picture
            asked[feature] = asked.get(feature, 0) + 1
            for one in seen:
                if one.score >= min_score:
                    found.setdefault((feature, one.label), {}).setdefault(index, one)  # best first
    sightings = [
        Sighting(
            feature=feature,
            label=label,
            pictures=len(where),
            share=round(len(where) / asked[feature], 4),
            any=True,
            all=len(where) == asked[feature],
            evidence=[Evidence(picture=at, score=one.score, box=one.box) for at, one in where.items()],
        )
        for (feature, label), where in found.items()
    ]
    return sorted(sightings, key=lambda one: (-one.share, one.feature, one.label))
