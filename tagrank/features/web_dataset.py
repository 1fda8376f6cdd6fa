"""Images in the shards of a WebDataset: tar archives, of which each image is read where it lies in its shard."""

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.features.folders import image_suffixes, images_below, is_folder, report_errors

SUFFIX = ".tar"


@dataclass(frozen=True)
class ShardImage:
    """An image file in a tar archive.

    Attributes:
        shard: the archive.
        name: of the file in it.
        offset: where its content begins, in bytes.
        size: how many bytes it has.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def absolute(self) -> "ShardImage":
        """The same image, for a process in another folder."""
        return replace(self, shard=Path(os.path.abspath(self.shard)))

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            InputError: the archive cannot be read, or has become shorter.
        """
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise InputError(f"{self}: {reason(error)}") from error
        if len(content) < self.size:
            raise InputError(f"{self}: expected {self.size} bytes at {self.offset}, but the archive ends before")
        return content


def is_shard(path: str | Path) -> bool:
    """Whether a path is that of a tar archive, by its name."""
    return Path(path).suffix.lower() == SUFFIX


def shard_images(shard: Path, errors: list[InputError]) -> Iterator[ShardImage]:
    """The image files in a tar archive, in its order. Only the headers are read.

    Image files are recognised by their names, as in a folder: :func:`tagrank.features.folders.find_images`. What lies
    beside them in a sample of a WebDataset is left out.

    Args:
        shard: the archive, which must not be compressed.
        errors: gets the error if the archive cannot be read, ends too early, or has no images.
    """
    count, suffixes = 0, image_suffixes()
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                name = posixpath.basename(member.name)
                if not name.lower().endswith(suffixes) or name.startswith("."):
                    continue
                if member.isreg() and not member.issparse() and member.offset_data + member.size <= size:
                    count += 1
                    yield ShardImage(shard, posixpath.normpath(member.name), member.offset_data, member.size)
            end = archive.offset
        # tarfile takes a damaged header for the end.
        with shard.open("rb") as file:
            file.seek(end)
            if end > size or file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                errors.append(InputError(f"{shard}: damaged after byte {min(end, size)}: images may be missing"))
    except OSError as error:
        errors.append(InputError(f"{shard}: {reason(error)}"))
    except (tarfile.TarError, EOFError, ValueError) as error:
        expected = "a tar archive that is not compressed" if not count else "a whole tar archive"
        errors.append(InputError(f"{shard}: expected {expected}, got one that cannot be read ({error})"))
    else:
        if not count:
            errors.append(InputError(f"{shard}: no images in this archive"))


def find_photographs(
    paths: Iterable[str | Path],
    *,
    exclude_folders: Sequence[str] = (),
    on_error: Callable[[InputError], None] | None = None,
) -> list[Path | ShardImage]:
    """List the images that paths stand for, as :func:`tagrank.features.folders.find_images`, and those in archives.

    Args:
        paths: folders, files, and tar archives.
        exclude_folders: as for ``find_images``.
        on_error: as for ``find_images``, also called with the errors of archives (:func:`shard_images`).

    Raises:
        InputError: as for ``find_images``, or there are errors of archives, and no ``on_error`` or no image at all.
    """
    images: list[Path | ShardImage] = []
    errors: list[InputError] = []
    for path in map(Path, paths):
        if is_folder(path):
            images.extend(images_below(path, exclude_folders, errors))
        elif is_shard(path):
            images.extend(shard_images(path, errors))
        else:
            images.append(path)
    report_errors(errors, on_error if images else None)
    return images
