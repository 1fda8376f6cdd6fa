"""Files of the Hugging Face Hub: from its cache on the disk, or downloaded once.

A file in the cache is used without asking the Hub for a newer one. If the Hub cannot be reached, that is noticed by one
request before the download, whose own retries would take half a minute.
"""

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.features.backbones.backbone import import_library

CONFIGURATION = "config.json"
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
_INDEX = "model.safetensors.index.json"
_WEIGHTS = (("model.safetensors",), (_INDEX, "model-*-of-*.safetensors"), ("pytorch_model.bin",))
_PATIENCE = 10  # seconds


def safer_names(file: str) -> list[str]:
    """A file of weights, after the names of the safetensors file that may be beside it."""
    stem = file.rpartition(".")[0]
    return list(dict.fromkeys([f"{stem.replace('pytorch_model', 'model')}.safetensors", f"{stem}.safetensors", file]))


def hub_file(name: str, repository: str, files: Sequence[str], extra: str) -> Path:
    """The first of several files that a repository has.

    Args:
        name: of the backbone, for messages.
        repository: ``"ORG/NAME"``.
        files: their names, the best first.
        extra: of tagrank, which installs what talks to the Hub.

    Raises:
        InputError: the cache has none, and the Hub has none or cannot be reached.
    """
    hub = import_library("huggingface_hub", name, extra)
    for file in files:
        if isinstance(cached := hub.try_to_load_from_cache(repository, file), str):
            return Path(cached)
    instead = f"download {files[0]} of {repository} elsewhere and give its path as weights (--weights)"
    try:
        there = _listing(hub, repository)
        found = next((file for file in files if file in there), None)
        if found is None:
            raise FileNotFoundError(f"it has no {' or '.join(files)}")
        return Path(hub.hf_hub_download(repository, found))
    except Exception as error:
        _unreachable(name, repository, error, instead)


def hub_folder(name: str, repository: str) -> Path:
    """A folder with the configuration, the preprocessing and the weights of a model for transformers.

    Raises:
        InputError: the cache does not have them, and the Hub does not either, or cannot be reached.
    """
    hub = import_library("huggingface_hub", name, "transformers")
    try:
        folder = Path(hub.snapshot_download(repository, local_files_only=True))
        weight_files(name, folder)
        return folder
    except (OSError, InputError):
        pass  # not there, or not all of it
    instead = (
        f"download it elsewhere (hf download {repository} --local-dir FOLDER) and give the folder as weights "
        "(--weights FOLDER)"
    )
    try:
        there = _listing(hub, repository)
        weights = next((w for patterns in _WEIGHTS if (w := _matching(there, patterns))), [])
        wanted = _matching(there, (CONFIGURATION, *PREPROCESSING)) + weights
        return Path(hub.snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:
        _unreachable(name, repository, error, instead)


def weight_files(name: str, folder: Path) -> list[Path]:
    """The files with the weights of a model for transformers: one, or several parts.

    Raises:
        InputError: the folder is not there, or lacks one of the files that such a model has.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with a model for transformers ({name}), got no folder")
    there = [path.name for path in folder.iterdir()]
    weights = next((w for patterns in _WEIGHTS if (w := _matching(there, patterns))), [])
    lacking = [CONFIGURATION] if CONFIGURATION not in there else []
    lacking += [PREPROCESSING[0]] if not _matching(there, PREPROCESSING) else []
    lacking += ["model.safetensors"] if not weights else []
    if _INDEX in weights and not weights[0].endswith(f"-of-{len(weights) - 1:05}.safetensors"):
        lacking += ["parts of the weights"]
    if lacking:
        raise InputError(f"{folder}: expected a vision model for transformers, the folder lacks {', '.join(lacking)}")
    return [folder / file for file in weights if file != _INDEX]


def _matching(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return sorted(file for file in files if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns))


def _listing(hub: Any, repository: str) -> list[str]:
    """The names of the files of a repository."""
    return [file.rfilename for file in hub.HfApi().model_info(repository, timeout=_PATIENCE).siblings or ()]


def _unreachable(name: str, repository: str, error: Exception, instead: str) -> NoReturn:
    raise InputError(
        f"{name}: cannot get {repository} from the Hugging Face Hub ({first_line(error):.200}), and the cache on this "
        f"machine does not have it; {instead}"
    ) from error
