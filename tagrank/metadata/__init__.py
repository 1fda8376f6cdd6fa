"""Tags in photographs: written as XMP, and as IPTC keywords, into their files or beside them.

``keyword_lists`` decides what the lists of keywords hold, ``exiv2_image`` reads and writes them with the library exiv2,
``image_data`` makes sure that nothing else of a file changes, ``sidecars`` names the files beside photographs, and
``tag_writer`` puts them together.
"""

from tagrank.metadata.sidecars import Naming
from tagrank.metadata.tag_writer import Outcome, Place, TagWriter, embedded_keywords, new_sidecar

__all__ = ["Naming", "Outcome", "Place", "TagWriter", "embedded_keywords", "new_sidecar"]
