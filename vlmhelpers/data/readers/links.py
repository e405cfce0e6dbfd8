"""Pictures named by web addresses, in the place of image paths."""

import re
from collections import Counter

from vlmhelpers.data.download.downloader import download_images
from vlmhelpers.data.rows import ImageRoot

_NOT_ASKED = "pass download=True (with the command jsonl: --download), or write the path of a picture"


def is_link(place):
    """Whether the place of an image is an http or https address, well formed or not; all others are paths."""
    return re.match("https?:", place, re.IGNORECASE) is not None


class LinkedRoot(ImageRoot):
    """An ImageRoot that also resolves web addresses, to the files that `download` got for them."""

    def __init__(self, folder):
        super().__init__(folder)
        self._downloaded = None

    def download(self, links, cache_dir, **rules):
        """Gets the pictures with download_images, in one call; prints one line where there are links."""
        self._downloaded = download_images(links, cache_dir, **rules)
        if self._downloaded:
            print(_summary(self._downloaded.values()))

    def resolve(self, written):
        """As ImageRoot.resolve. An address that was not among the links of `download` has neither path nor problem."""
        if not is_link(written):
            return super().resolve(written)
        if self._downloaded is None:
            return None, [(f"not a local file: {written!r}", _NOT_ASKED)], ""
        found = self._downloaded.get(written)
        if found is None or isinstance(found, str):
            return found, [], ""
        reason, remedy = found
        return None, [(f"{reason} ({written[:80]!r})", remedy)], ""


def _summary(results):
    """One line: how many pictures there are, and why the others are not."""
    kinds = Counter("" if isinstance(found, str) else found[0].partition(":")[0] for found in results)
    parts = [f"{kinds['']} there", *(f"{count} {kind}" for kind, count in kinds.most_common() if kind)]
    return f"{kinds.total()} linked pictures: {', '.join(parts)}"
