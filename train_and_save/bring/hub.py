"""Models from a hub by name, pinned to a commit. No torch is imported: a wrong name is told at once."""

from pathlib import Path

from httpx2 import TransportError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from train_and_save import Origin, UserError

DEFAULTS: dict[str, str] = {
    "classification": "google/vit-base-patch16-224",
    "captioning": "Salesforce/blip-image-captioning-base",
    # The newest family, and the first that needs no NMS: one pass gives the boxes.
    "detection": "Ultralytics/YOLO26/yolo26n.pt",
}
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


def download(name: str, revision: str | None) -> tuple[Path, Origin]:
    """Download a model by its hub name, `owner/repository` or `owner/repository/file.pt`; return where it lies.

    The revision is pinned to a commit before anything is downloaded; an interrupted download goes on where it stopped.
    Raises UserError: no hub, no such model, no access.
    """
    repository, file = _split(name)
    try:
        info = HfApi().model_info(repository, revision=revision)
        patterns = _patterns([sibling.rfilename for sibling in info.siblings or []], file, name)
        folder = Path(snapshot_download(repository, revision=info.sha, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise UserError(f"The hub has no model {repository!r}, or it is private: check the name, or log in.") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, TransportError) as error:
        raise UserError(
            f"No hub is reachable for {repository}: download the model elsewhere and save it from its folder with"
            " `python -m train_and_save path DIR`."
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"The hub refused {repository}: {str(error).splitlines()[0]}") from error
    licence = str((info.card_data.get("license") if info.card_data else None) or "not stated by its authors")
    origin = Origin(Path(file or repository).stem, f"{name} at {(info.sha or '')[:12]}", licence)
    return folder / file if file else folder, origin


def _split(name: str) -> tuple[str, str | None]:
    parts = name.split("/")
    if len(parts) == 3 and parts[2].endswith(".pt"):
        return "/".join(parts[:2]), parts[2]
    if len(parts) > 2 or not all(parts):
        raise UserError(f"{name!r} is no model name: owner/repository, or owner/repository/file.pt for a YOLO.")
    return name, None


def _patterns(files: list[str], file: str | None, name: str) -> list[str]:
    """What to download: one kind of weights, no copies for other frameworks."""
    if file is not None:
        if file not in files:
            raise UserError(f"{name}: there is no such file; .pt files there: {_some(files, '.pt')}.")
        return [file]
    if "config.json" not in files:
        raise UserError(f"{name} has no config.json; for a YOLO name its file: {_some(files, '.pt')}.")
    top = [name for name in files if "/" not in name]
    return [*FILES] if any(name.endswith(".safetensors") for name in top) else [*FILES, "pytorch_model*.bin"]


def _some(files: list[str], suffix: str) -> str:
    return ", ".join([name for name in files if name.endswith(suffix)][:5]) or "none"
