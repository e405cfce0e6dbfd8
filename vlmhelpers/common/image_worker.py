"""The process that inspects images for `image_workers`: what an image costs there is limited by the system itself."""

import errno
import faulthandler
import os
import pickle
import signal
import sys
from functools import cache

from PIL import AvifImagePlugin, Image

from vlmhelpers.common.image_costs import BYTES, SECONDS, decoded_bytes
from vlmhelpers.common.images import UnusableImage, has_free, inspect_image, strict_pillow

if sys.platform == "linux":
    import resource

_PATIENCE = 60  # seconds beside those of the processor, of a disk or a machine that is slow
_LARGE = 60_000_000  # bytes of decoded pixels from which on a decoder may fail for want of memory, and not say so


def main():
    """Answers what comes on standard input, to its end: with the process that asks, however that ends."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = open(os.devnull, "r+b")
    for descriptor in (0, 1, 2):  # decoders in C talk
        os.dup2(nowhere.fileno(), descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each would take a thread's memory
    with strict_pillow():
        while question := _next(questions):
            sources, max_pixels = question
            faulthandler.dump_traceback_later(_PATIENCE + SECONDS * len(sources), exit=True, file=nowhere)
            pickle.dump([_answer(source, max_pixels) for source in sources], answers)
            answers.flush()
            faulthandler.cancel_dump_traceback_later()


def _next(questions):
    try:
        return pickle.load(questions)
    except EOFError:
        return None


def _answer(source, max_pixels):
    """ImageFacts, or the exception."""
    Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit, which sees what is not in the header, too
    start = _address_space() + BYTES
    decoded = 0

    def before_decoding(image):
        nonlocal decoded
        decoded = decoded_bytes(image)
        _limit_memory(start + decoded)

    _limit_time(SECONDS)
    _limit_memory(start)
    try:
        return inspect_image(source, max_pixels, before_decoding)
    except Exception as error:
        _limit_memory(None)
        return _judged(error, decoded)
    finally:
        _limit_time(0)
        _limit_memory(None)


def _judged(error, decoded):
    """The exception, which a limit that was set here may have led to."""
    remedy = "make it smaller, or save it again as PNG or baseline JPEG"
    limit = f"{BYTES // 10**6} MB beyond its pixels"
    out_of_memory = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if out_of_memory and has_free(BYTES + 2 * decoded):
        return UnusableImage(f"too much memory: it takes more than {limit}", remedy)
    if decoded > _LARGE and isinstance(error, UnusableImage) and error.reason.startswith("truncated"):
        return UnusableImage(f"{error.reason} (or it takes more than {limit})", f"{error.remedy}; or {remedy}")
    return error


def _limit_time(seconds):
    """The system ends this process after so much more CPU time, also in a decoder in C; 0 for no limit."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _address_space():
    """Bytes of it that are taken; 0 where the system does not count them."""
    if sys.platform != "linux":
        return 0
    return int(os.pread(_counts(), 100, 0).split()[0]) * os.sysconf("SC_PAGE_SIZE")


@cache
def _counts():
    return os.open("/proc/self/statm", os.O_RDONLY)


def _limit_memory(most):
    """Allocations fail beyond so many bytes of address space, None for those that this process was given."""
    if sys.platform == "linux":  # no other system counts them
        soft, hard = _given_memory()
        unlimited = soft == resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_AS, (soft if most is None else most if unlimited else min(most, soft), hard))


@cache
def _given_memory():
    return resource.getrlimit(resource.RLIMIT_AS)


if __name__ == "__main__":
    main()
