"""Models on a model hub (https://huggingface.co, or the one that ``HF_ENDPOINT`` names), by ``huggingface_hub``.

Only the files of a model folder travel, which are safetensors, JSON and the model card. No other file of a repository
is ever downloaded, so nothing can be unpickled or run. Needs no torch.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from tagrank.data.files import first_line, read_json, reason, write_atomically
from tagrank.errors import InputError
from tagrank.model_card import is_written
from tagrank.model_files import CARD, COMPLETER, CONFIG, EVALUATION, FAMILIARITY, SEEN, VOCABULARY, WEIGHTS

if TYPE_CHECKING:
    from types import ModuleType

    from huggingface_hub import HfApi

HUB = "hf:"
"""What a model's name on the command line begins with, if the model is on the hub: ``hf:ORG/NAME[@REVISION]``."""

FILES = (CONFIG, VOCABULARY, WEIGHTS, FAMILIARITY, COMPLETER, SEEN, EVALUATION, CARD)
"""What travels. All but the first three may be missing."""

_PATIENCE = 10  # seconds, for the hub's first answer
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?", re.ASCII)


class Source(NamedTuple):
    """Where a model came from.

    Attributes:
        name: ``hf:ORG/NAME@COMMIT`` with the full hash of the commit, or the path of the folder.
        folder: the folder that was read; of a model of the hub its copy in the cache.
        revision: the hash of the commit; None if the model is not of the hub.
    """

    name: str
    folder: Path
    revision: str | None = None

    @property
    def label(self) -> str:
        """The name for files that are shared: of a folder its last part, without where it is on this machine."""
        return self.folder.absolute().name if self.revision is None else self.name

    @classmethod
    def of(cls, folder: Path) -> "Source":
        """The source of a model in a folder, which may be one in the cache of ``huggingface_hub``."""
        # CACHE/models--ORG--NAME/snapshots/COMMIT
        snapshot = re.fullmatch(r"models--(.+)--(.+)/snapshots/([0-9a-f]{40})", "/".join(folder.absolute().parts[-3:]))
        if snapshot is None:
            return cls(str(folder), folder)
        return cls(f"{HUB}{snapshot[1]}/{snapshot[2]}@{snapshot[3]}", folder, snapshot[3])


def split_name(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """The repository and the revision of a model's name on the hub.

    Args:
        name: ``ORG/NAME`` or ``ORG/NAME@REVISION``, with or without ``hf:``.
        revision: a branch, a tag or the hash of a commit, if the name has none.

    Raises:
        InputError: the name is none, or has another revision.
    """
    match = _NAME.fullmatch(name.removeprefix(HUB))
    if match is None:
        raise InputError(f"{name}: expected the folder of a trained model, or hf:ORG/NAME[@REVISION]")
    if revision is not None and match["revision"] not in (None, revision):
        raise InputError(f"{name}: revision: the name has {match['revision']}, got {revision} too")
    return match["repo"], revision or match["revision"]


def is_on_hub(name: str) -> bool:
    """Whether a name on the command line is of a model on the hub."""
    return name.startswith(HUB)


def download(
    name: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Source:
    """Get a model from the hub, or from the copies that earlier downloads left in the cache.

    The revision is resolved to a commit once, and all files are of this commit. If the hub does not answer that one
    request, nothing else is asked of it. The configuration is looked at before the weights are downloaded.

    Args:
        name: as for :func:`split_name`.
        revision: as for :func:`split_name`; by default the newest commit of ``main``, or without network the one that
            was last downloaded.
        cache_dir: instead of ``huggingface_hub``'s own cache (``HF_HUB_CACHE``).
        token: instead of the one that ``hf auth login`` saved.
        local_files_only: whether only the cache may be used.

    Raises:
        InputError: ``huggingface_hub`` is not installed; the name is none; there is no such model or revision, or no
            permission to read it; the hub cannot be reached and there is no copy; or the repository has no model of
            tagrank.
    """
    hub = import_hub()
    repo, revision = split_name(name, revision)
    cache = Path(cache_dir or hub.constants.HF_HUB_CACHE)
    shown = f"{HUB}{repo}" + (f"@{revision}" if revision else "")

    unreached = "local_files_only" if local_files_only else _unreached(hub, shown, repo, revision, token)

    def snapshot(files: Sequence[str], revision: str | None) -> Path:
        with _faults(shown, cache, unreached):
            folder = hub.snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(files),
                cache_dir=cache,
                token=token,
                local_files_only=unreached is not None,
                tqdm_class=_progress(),
            )
        return Path(folder)

    first = snapshot((CONFIG, VOCABULARY), revision)
    _check(first, shown)
    return Source.of(snapshot(FILES, first.name))


def upload(
    folder: Path,
    repo: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Put the files of a model's folder on the hub, as one commit. The repository is made if it does not exist.

    A model card that somebody has written there by hand stays.

    Args:
        folder: the model, with its card.
        repo: ``ORG/NAME``, with or without ``hf:``.
        revision: the branch; ``main`` by default. It is made if it does not exist.
        private: whether a new repository is private; by default what the organisation has set.
        message: of the commit.
        token: as for :func:`download`; it must permit writing.

    Returns:
        ``hf:ORG/NAME@COMMIT``, the name of what was uploaded.

    Raises:
        InputError: ``huggingface_hub`` is not installed, the name is none, the hub cannot be reached, or there is no
            permission to write.
    """
    hub = import_hub()
    repo, revision = split_name(repo, revision)
    api = hub.HfApi(token=token)
    with _faults(f"{HUB}{repo}", None):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        kept = [CARD] if _has_own_card(api, repo, revision) else []
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            allow_patterns=list(FILES),
            ignore_patterns=kept,
            commit_message=message or "A model of tagrank",
        )
    return f"{HUB}{repo}@{done.oid}"


def copy_records(source: Path, folder: Path) -> None:
    """Copy what is known of a model beside what it consists of: which images it has seen, and how it was judged.

    Args:
        source: the folder of the model.
        folder: the folder of the same model, or of what became of it. An evaluation of other weights is left out of the
            card later.

    Raises:
        InputError: a file cannot be read or written.
    """
    try:
        for name in (SEEN, EVALUATION):
            if (source / name).is_file():
                write_atomically(folder / name, [(source / name).read_bytes()])
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {reason(error)}") from error


def _unreached(hub: "ModuleType", name: str, repo: str, revision: str | None, token: str | bool | None) -> str | None:
    """Why the hub does not answer; ``None`` if it tells of the revision. Raises an InputError if there is none such.

    ``snapshot_download`` would try for half a minute to reach the hub, also for a copy that is complete.
    """
    from huggingface_hub import errors

    known = (
        errors.GatedRepoError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    )
    with _faults(name, None):
        try:
            hub.HfApi(token=token).model_info(repo, revision=revision or "main", timeout=_PATIENCE)
        except known:
            raise
        except Exception as error:
            return first_line(error)
    return None


def _has_own_card(api: "HfApi", repo: str, revision: str | None) -> bool:
    """Whether the repository has a card that was not written by :mod:`tagrank.model_card`."""
    if not api.file_exists(repo, CARD, revision=revision):
        return False
    with TemporaryDirectory() as folder:
        card = api.hf_hub_download(repo, CARD, revision=revision, local_dir=folder)
        return not is_written(Path(card))


def _check(folder: Path, name: str) -> None:
    """Look at the configuration: the repository of another library may have gigabytes of ``model.safetensors``."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if not (isinstance(config, dict) and "ranker" in config and (folder / VOCABULARY).is_file()):
        raise InputError(f"{name}: is not a model of tagrank: expected a ranker in {CONFIG}, and {VOCABULARY}")


def import_hub() -> "ModuleType":
    """The package ``huggingface_hub``.

    Raises:
        InputError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants  # huggingface_hub imports its modules when they are first used
    except ImportError as error:
        raise InputError("models of a hub need the package huggingface_hub: pip install 'tagrank[hub]'") from error
    return huggingface_hub


def _progress() -> type:
    """The class of progress bars: they show on terminals only."""
    from tqdm.auto import tqdm

    class OnTerminals(tqdm):  # type: ignore[misc]
        def __init__(self, *given: Any, **options: Any) -> None:
            options.pop("name", None)  # huggingface_hub's own bars take it
            super().__init__(*given, **options | {"disable": None})

    return OnTerminals


@contextmanager
def _faults(name: str, cache: Path | None, unreached: str | None = None) -> Iterator[None]:
    """What goes wrong on the way to the hub becomes an InputError with the model's name.

    Args:
        name: of the model.
        cache: where copies are; None if none may serve.
        unreached: why the hub was not reached before.
    """
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(f"{name}: its owner must give you access first ({hub}); then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{name}: no such model on {hub}, or no permission: `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{name}: no such revision (branch, tag or full hash of a commit) on {hub}") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{name}: {hub} cannot be reached{f' ({unreached})' if unreached else ''}, and {cache} has no complete "
            f"copy. On a machine that reaches it, run `hf download {name.removeprefix(HUB).partition('@')[0]} "
            f"--local-dir FOLDER`; copy the folder here, and give it as the model"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{name}: {first_line(error)}") from error
    except Exception as error:
        # Also those of the library that reaches the network, which is not always the same.
        raise InputError(f"{name}: {hub}: {first_line(error)}") from error
