"""Sends a model or a pipeline to the Hub in one commit, after everything was checked."""

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from pqdiff.clean_text import clean, one_line
from pqdiff.hub.allow_list import VOCABULARIES
from pqdiff.hub.cards import render_tokenizer_card
from pqdiff.hub.check import check_folder
from pqdiff.hub.local_paths import public_name, without_local_paths
from pqdiff.hub.pipeline_cards import known_license, render_bare_card, render_pipeline_card
from pqdiff.json_text import read_json
from pqdiff.models.loading import load_tokenizer
from pqdiff.yaml_text import dump_yaml, read_yaml

# Failures of the connection. huggingface_hub uses requests, httpx or httpx2, depending on its version, and its own error
# derives from the error of that library.
_NO_CONNECTION = (OSError, HfHubHTTPError.__bases__[0])
_NOT_RECORDED = "How long it was trained, and on what, was not recorded."


@dataclass(frozen=True)
class PushResult:
    """What was sent; with `dry_run`, what would be sent.

    Attributes:
        url: address of the repository.
        files: path and size in bytes of each file.
        left_out: files and folders that were not sent.
        removed: weights of an earlier push that were removed from the repository, because loaders would prefer them.
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
    """Check a folder and send it to the Hub as one commit. The repository is made if it does not exist.

    Paths of this machine in configurations stay here. A folder without `README.md` gets a card with the facts that the
    folder shows. In a trainer's card, whose code loads the run by its name, the repository takes the place of that name.

    Args:
        folder: an `AutoencoderPQ` or a pipeline that `save_pretrained` wrote, optionally with `variant.yaml`, `samples/`,
            `metrics.json` and `README.md`, as `training/adapt_sd.py` writes them. `check_folder` says which files are
            sent.
        repo_id: `user/name` on the Hub.
        private: make the repository private. A repository that exists must be private already.
        dry_run: only check and list. Nothing is sent or written.
        commit_message: message of the commit.
        token: token for the Hub. Default: that of `hf auth login` or `HF_TOKEN`.

    Raises:
        ValueError: if the folder or `repo_id` is wrong, or the Hub refuses the content.
        PermissionError: if the Hub does not know the user, or the user may not write to the repository.
        ConnectionError: if the Hub cannot be reached or fails. All messages are one line.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    files, left_out = check_folder(folder)
    made = "README.md" not in files
    card = (_make_card(folder, repo_id) if made else addressed((folder / "README.md").read_text(), repo_id)).encode()
    contents = {file: _public_content(folder / file) for file in files} | {"README.md": card}
    sizes = [(file, _size(content)) for file, content in sorted(contents.items())]
    api = HfApi(token=token)
    if dry_run:
        return PushResult(clean(f"{api.endpoint}/{repo_id}"), sizes, left_out, [])
    with _one_line(repo_id, token):
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"repository ({repo_id}) exists and is public, nothing was sent: make it private in its settings, "
                "or push without private"
            )
        removed = _stale(files, api.list_repo_files(repo_id))
        additions = [CommitOperationAdd(file, content) for file, content in contents.items()]
        deletions = [CommitOperationDelete(file) for file in removed]
        api.create_commit(repo_id, [*additions, *deletions], commit_message=commit_message)
    if made:
        (folder / "README.md").write_bytes(card)
    return PushResult(clean(url), sizes, left_out, removed)


def _public_content(path: Path) -> str | bytes:
    """Path of a file; if it is a configuration with paths of this machine, what it holds without them."""
    if path.name == "variant.yaml":
        content, write = _read_variant(path), dump_yaml
        public = {
            **without_local_paths(content),
            **{key: public_name(content[key]) for key in ("base", "autoencoder") if key in content},
        }
    elif path.suffix == ".json" and path.name not in VOCABULARIES:
        content, write = read_json(path, path.name), functools.partial(json.dumps, indent=2)
        public = without_local_paths(content)
    else:
        return str(path)
    return str(path) if public == content else write(public).encode()


def _size(content: str | bytes) -> int:
    return len(content) if isinstance(content, bytes) else Path(content).stat().st_size


def addressed(card: str, repo_id: str) -> str:
    """The card with `repo_id` in its code instead of the name of the run, which is all that a trainer knows."""
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
    """Weights in the repository that are in the same folders as the new ones, but are not among them."""
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
        model = load_tokenizer(folder)
        card = render_tokenizer_card(
            model,
            name=name,
            load=f'"{repo_id}"',
            license="unknown",
            summary=f"An image tokenizer with {model.bits_per_pixel:g} bits per pixel.",
            training=_NOT_RECORDED,
            evaluation=None,
            limits="Images that are unlike those it was trained on may be reconstructed worse. Nothing was measured.",
        )
        return card.content
    return render_bare_card(name, "image-to-image", _NOT_RECORDED)


def _read_variant(path: Path) -> dict:
    if not path.is_file():
        return {}
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold the keys of a variant, holds {content!r}")
    return content


@contextlib.contextmanager
def _one_line(repo_id: str, token: str | None) -> Iterator[None]:
    """Turn errors of the exchange with the Hub into errors of one line."""
    try:
        yield
    except (RuntimeError, ValueError, *_NO_CONNECTION) as error:
        chain = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)  # uploads wrap the original error
        answer = next((cause for cause in chain if isinstance(cause, HfHubHTTPError)), None)
        lost = next((cause for cause in chain if isinstance(cause, _NO_CONNECTION)), None)
        reason = one_line(getattr(answer, "server_message", None) or answer or lost or error)[:300]
        if answer is not None:
            raise _refusal(answer.response.status_code, reason, repo_id, token) from None
        if isinstance(lost, OSError) and lost.filename:
            raise ValueError(reason) from None  # a local file, not the Hub
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
