"""Images that rows name by web addresses instead of paths."""

import os
import re
from collections import Counter
from collections.abc import Iterable

from vlmhelpers.data.download.downloader import download_images
from vlmhelpers.data.rows import ImageRoot


def is_link(written: str) -> bool:
    """Whether an image is named by an http or https address, well formed or not; all others are paths."""
    return re.match("https?:", written, re.IGNORECASE) is not None


class LinkedRoot(ImageRoot):
    """An ImageRoot that also resolves web addresses, to the files that `download` got for them."""

    _downloaded = None

    def download(self, links: Iterable[str], cache_dir: str | os.PathLike | None, **rules) -> None:
        """Gets the images with download_images, in one call; prints one line where there are links."""
        self._downloaded = download_images(links, cache_dir, **rules)
        failures = [found[0] for found in self._downloaded.values() if isinstance(found, tuple)]
        kinds = Counter(reason.partition(":")[0] for reason in failures)
        if total := len(self._downloaded):
            parts = [f"{total - len(failures)} there", *(f"{count} {kind}" for kind, count in kinds.most_common())]
            print(f"{total} linked pictures: {', '.join(parts)}")

    def resolve(self, written: str) -> tuple[str | None, list[tuple[str, str]], str]:
        """As ImageRoot.resolve. An address that was not among the links of `download` has neither path nor problem."""
        if not is_link(written):
            return super().resolve(written)
        if self._downloaded is None:
            remedy = "pass download=True (with the command jsonl: --download), or write the path of an image"
            return None, [(f"not a local file: {written!r}", remedy)], ""
        found = self._downloaded.get(written)
        if isinstance(found, tuple):
            return None, [(f"{found[0]} ({written[:80]!r})", found[1])], ""
        return found, [], ""
