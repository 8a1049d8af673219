"""Send a model or a pipeline to the Hub: everything is checked before anything is sent, and goes in one commit."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..models import AutoencoderPQ
from .cards import write_card
from .check import check_folder, read_json
from .pipeline_cards import known_license, render_bare_card, render_pipeline_card

# Failures of the connection: huggingface_hub's HTTP library is requests, httpx or httpx2 depending on its version, and its
# own error derives from that library's.
_NO_CONNECTION = (OSError, HfHubHTTPError.__bases__[0])
_NOT_RECORDED = "How long it was trained, and on what, was not recorded."


@dataclass(frozen=True)
class PushResult:
    """What was sent, or would be.

    Attributes:
        url: of the repository.
        files: path and bytes of each file.
        left_out: files and folders that stay here.
        removed: weights of an earlier push that were removed there, because they would be loaded instead of the new.
    """

    url: str
    files: list[tuple[str, int]]
    left_out: list[str]
    removed: list[str]


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    commit_message: str = "Upload with pqdiff",
    token: str | None = None,
) -> PushResult:
    """Check a folder and send it to the Hub as one commit; the repository is made if it does not exist.

    A folder without `README.md` gets a card that says what the folder shows, and that no more is known. The card of a
    trainer, whose snippet loads the run by its name, goes up with the repository in its place.

    Args:
        folder: an `AutoencoderPQ` or a pipeline as `save_pretrained` wrote it, maybe with `variant.yaml`, `samples/`,
            `metrics.json` and `README.md`, as `training/adapt_sd.py` leaves it. See `check_folder` for what stays.
        repo_id: `user/name` on the Hub.
        private: make the repository private. One that exists must be so already.
        dry_run: only check and list; nothing is sent, and nothing written.
        commit_message: of the commit.
        token: for the Hub; default: that of `hf auth login` or `HF_TOKEN`.

    Raises:
        ValueError: if the folder or `repo_id` is wrong, or the Hub refuses the content.
        PermissionError: if the Hub does not know the user, or does not let the user write there.
        ConnectionError: if the Hub cannot be reached or fails. Each is one line.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    files, left_out = check_folder(folder)
    made = "README.md" not in files
    card = (_make_card(folder, repo_id) if made else addressed((folder / "README.md").read_text(), repo_id)).encode()
    files = [file for file in files if file != "README.md"]
    sizes = sorted([*((file, (folder / file).stat().st_size) for file in files), ("README.md", len(card))])
    api = HfApi(token=token)
    if dry_run:
        return PushResult(f"{api.endpoint}/{repo_id}", sizes, left_out, [])
    with _one_line(repo_id, token):
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"repository ({repo_id}) exists and is public, nothing was sent: make it private in its settings, "
                "or push without private"
            )
        removed = _stale(files, api.list_repo_files(repo_id))
        additions = [CommitOperationAdd(file, str(folder / file)) for file in files]
        additions.append(CommitOperationAdd("README.md", card))
        deletions = [CommitOperationDelete(file) for file in removed]
        api.create_commit(repo_id, [*additions, *deletions], commit_message=commit_message)
    if made:
        (folder / "README.md").write_bytes(card)
    return PushResult(str(url), sizes, left_out, removed)


def addressed(card: str, repo_id: str) -> str:
    """A card whose snippets load from the Hub what a trainer knew by the name of its run alone."""
    title = re.search(r"^# (.+)$", card, re.MULTILINE)
    names = "|".join(re.escape(json.dumps(name)) for name in ("THIS_FOLDER", title[1] if title else "THIS_FOLDER"))
    return re.sub(rf"\b(from_pretrained|load_lora_weights)\((?:{names})(?=[,)])", rf'\1("{repo_id}"', card)


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless `repo_id` is user/name."""
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("the user or organization is missing")
    except HFValidationError as error:
        raise ValueError(f"repo_id ({repo_id}) must be user/name: {error}") from None


def _stale(files: list[str], there: list[str]) -> list[str]:
    """Weights that lie in the repository beside the new ones and are not among them."""
    places = {PurePosixPath(file).parent for file in files if file.endswith(".safetensors")}
    return [
        file
        for file in sorted(set(there) - set(files))
        if PurePosixPath(file).parent in places and (".safetensors.index" in file or file.endswith(".safetensors"))
    ]


def _make_card(folder: Path, repo_id: str) -> str:
    """A card for a folder that has none."""
    name = repo_id.split("/")[1]
    if (folder / "model_index.json").is_file():
        if not all((folder / part).is_dir() for part in ("unet", "vae", "scheduler")):
            return render_bare_card(name, "text-to-image", _NOT_RECORDED)
        variant = _read_variant(folder / "variant.yaml")
        base = variant.get("base")
        return render_pipeline_card(
            folder,
            name=name,
            base_model=base,
            variant=variant,
            training=_NOT_RECORDED,
            license=known_license(base) or "unknown",
            load=f'"{repo_id}"',
        )
    if read_json(folder / "config.json", "config.json").get("_class_name") == "AutoencoderPQ":
        model = AutoencoderPQ.from_pretrained(folder)
        if not model.config.conv_networks:
            with tempfile.TemporaryDirectory() as temporary:
                write_card(model, temporary, name, "On which images it was fitted was not recorded.", f'"{repo_id}"')
                return (Path(temporary) / "README.md").read_text()
    return render_bare_card(name, "image-to-image", _NOT_RECORDED)


def _read_variant(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold the keys of a variant, holds {content!r}")
    return content


@contextlib.contextmanager
def _one_line(repo_id: str, token: str | None) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into one line."""
    try:
        yield
    except (RuntimeError, ValueError, *_NO_CONNECTION) as error:
        chain = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)  # uploads wrap what happened
        answer = next((cause for cause in chain if isinstance(cause, HfHubHTTPError)), None)
        lost = next((cause for cause in chain if isinstance(cause, _NO_CONNECTION)), None)
        reason = " ".join(str(getattr(answer, "server_message", None) or answer or lost or error).split())[:300]
        if answer is not None:
            raise _refusal(answer.response.status_code, reason, repo_id, token) from None
        if isinstance(lost, OSError) and lost.filename:
            raise ValueError(reason) from None  # a file here, not the Hub
        if lost is not None:
            raise ConnectionError(f"the Hub cannot be reached ({reason}): check the network and HF_ENDPOINT") from None
        raise ValueError(reason) from None


def _refusal(status: int, reason: str, repo_id: str, token: str | None) -> Exception:
    """The error for an HTTP status."""
    if status == 401:
        wrong = "the Hub does not accept the token" if token or get_token() else "not logged in to the Hub"
        return PermissionError(f"{wrong}: run `hf auth login`, or set HF_TOKEN to a token that may write")
    if status == 403:
        return PermissionError(f"no permission to write to {repo_id} ({reason}): check owner and token")
    if status >= 500:
        return ConnectionError(f"the Hub failed with {status} ({reason}): try again later")
    return ValueError(f"the Hub refused {repo_id} with {status}: {reason}")
