"""Whether the pictures of a manifest are where they are looked for. Needs no torch."""

from pathlib import Path

from tagrank.data.manifest import Manifest
from tagrank.data.spellings import find_file
from tagrank.errors import InputError


def check_some_there(manifest: Manifest, root: Path) -> None:
    """Tell a wrong folder from pictures that are missing: say once that no picture is there.

    Args:
        manifest: the images.
        root: the folder that their paths are relative to.

    Raises:
        InputError: none of the pictures is there.
    """
    if not any(find_file(root, example.image).exists() for example in manifest.examples):
        raise InputError(
            f"{root}: none of the {len(manifest)} images of {manifest.path} is in this folder, such as "
            f"{manifest.examples[0].image}; name the folder that their paths begin in (--images)"
        )
