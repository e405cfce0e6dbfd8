"""What stands in for images and image processors where no pixels are needed."""

from PIL import Image


class SizedImage(Image.Image):
    """An image of known size (width, height) without pixels, which a processor takes for an image."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self._mode, self._size = "RGB", size


class ImageProcessorStandIn:
    """Stands in for an image processor: what a subclass does not do itself is that one's own."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __getattr__(self, name):
        return getattr(self.image_processor, name)
