"""What a user of the page may ask for: to read a photograph, to accept a tag. One thread computes for all users."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from tagrank.annotator import Annotator
from tagrank.app.proposals import propose
from tagrank.app.session import Photograph
from tagrank.app.uploads import clean_name
from tagrank.decode import check_decoder
from tagrank.errors import InputError
from tagrank.evaluation.thumbnails import thumbnail
from tagrank.features.camera_files import RAW
from tagrank.features.extraction import all_readable, extract_features, single_core_threads
from tagrank.features.image_sources import use_source
from tagrank.metadata import embedded_keywords
from tagrank.model_files import model_digest
from tagrank.options import ListOptions

T = TypeVar("T")

SIDE, BYTES = 1280, 300_000
"""The longer side of the picture that the page shows, in pixels, and how large its file should be."""
SMALL_SIDE, SMALL_BYTES = 160, 8_000


class Service:
    """Computes with a model, in one thread: torch would give each of several too little, and exiv2 allows no more.

    Args:
        annotator: the model. Its backbone is loaded.
        lists: how lists are chosen, and which tags they show.

    Attributes:
        annotator: the model.
        digest: of the model.
        can_write_xmp: whether the library for it is installed.

    Raises:
        InputError: the backbone cannot be loaded, or an option does not go with the model.
    """

    def __init__(self, annotator: Annotator, lists: ListOptions = ListOptions()) -> None:
        self.annotator = annotator
        self._options: Mapping[str, Any] = annotator.rank_options(lists)
        if annotator.completer is not None:
            check_decoder(annotator.completer, lists.decoder)
        self._thread: ThreadPoolExecutor = single_core_threads(1)
        self._backbone = annotator.backbone()
        self.digest = model_digest(annotator.ranker, annotator.vocabulary.tags)
        self.can_write_xmp = find_spec("exiv2") is not None

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that lists may have, by the names that are shown."""
        output = self._options["output"]
        return tuple(output.vocabulary.tag(number) for number in output.tags)

    def run(self, function: Callable[[], T]) -> T:
        """The result of a function that runs in the thread that computes, when those before it are done."""
        return self._thread.submit(function).result()

    def close(self) -> None:
        """End the thread. What waits for it is given up."""
        self._thread.shutdown(cancel_futures=True)

    def read(self, name: str, content: bytes) -> Photograph:
        """A photograph with the list that the model gives it. Its file is on the disk only meanwhile.

        Args:
            name: of its file, as its user has it.
            content: of its file.

        Raises:
            InputError: it is no image, or one that cannot be read. The message begins with the name.
        """
        name = clean_name(name)
        suffix = PurePath(name).suffix.lower()
        with TemporaryDirectory(prefix="tagrank-") as folder:
            # Raw files are known by their suffix. Nothing else of a name that somebody else chose is on the disk.
            path = Path(folder) / f"photograph{suffix if suffix in RAW else ''}"
            path.write_bytes(content)
            try:
                return self.run(lambda: self._read(name, path))
            except InputError as error:
                message = str(error).removeprefix(f"{path}: ").replace(str(path), name)
                raise InputError(f"{name}: {message}") from error

    def _read(self, name: str, path: Path) -> Photograph:
        ((_, features),) = all_readable(extract_features(self._backbone, [path]))
        image = use_source(path, lambda upright: upright, at_least=SIDE)
        picture, small = thumbnail(image, SIDE, BYTES), thumbnail(image, SMALL_SIDE, SMALL_BYTES)
        proposal = propose(self.annotator, features, (), self._options)
        return Photograph(name, picture, small, features, embedded_keywords(path), proposal)

    def accept(self, photograph: Photograph, tag: str) -> None:
        """Put a tag at the end of what is accepted. Nothing happens if it is there.

        Raises:
            InputError: the model does not have the tag.
        """
        self._change(photograph, lambda accepted: accepted if tag in accepted else [*accepted, tag])

    def take_back(self, photograph: Photograph, tag: str) -> None:
        """Take a tag out of what is accepted."""
        self._change(photograph, lambda accepted: [other for other in accepted if other != tag])

    def clear(self, photograph: Photograph) -> None:
        """Take all tags out of what is accepted."""
        self._change(photograph, lambda _: [])

    def _change(self, photograph: Photograph, change: Callable[[list[str]], list[str]]) -> None:
        def propose_again() -> None:
            accepted = change(photograph.accepted)
            photograph.proposal = propose(self.annotator, photograph.features, accepted, self._options)
            photograph.accepted = accepted

        self.run(propose_again)
