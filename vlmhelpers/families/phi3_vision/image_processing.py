"""Images as Phi-3-Vision gets them: square tiles of the image as it lies, and one overview of all of it."""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import BaseImageProcessor, BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, make_flat_list_of_images


class Phi3VImageProcessor(BaseImageProcessor):
    """Resizes each image and cuts it into at most `num_crops` tiles; published are 16 (Phi-3) and 4 (Phi-3.5).

    size: height and width of a tile in pixels, equal. num_img_tokens: tokens of one tile, a square number.
    image_mean, image_std: per channel, of pixels in 0..1.
    """

    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        num_crops=16,
        size=None,
        num_img_tokens=144,
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_crops = num_crops
        self.size = dict(size or {"height": 336, "width": 336})
        self.num_img_tokens = num_img_tokens
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def tile_grid(self, width, height, num_crops=None):
        """(rows, columns) of tiles for an image of this size in pixels; ValueError for a `num_crops` below 1.

        The longer side has the most tiles s with s * ceil(s / ratio) <= num_crops; ratio is longer by shorter side.
        """
        num_crops = self._most_tiles(num_crops)
        ratio = max(width, height) / min(width, height)
        long = max(s for s in range(1, num_crops + 1) if s * math.ceil(s / ratio) <= num_crops)
        short = math.ceil(self._shorter_side(long, ratio) / self.size["height"])
        return (short, long) if width >= height else (long, short)

    def _shorter_side(self, tiles, ratio):
        """Pixels of the shorter side when the longer one fills `tiles` tiles."""
        return max(1, int(tiles * self.size["height"] / ratio))

    def count_tokens(self, width, height, num_crops=None):
        """Tokens of an image: its tiles and the overview, one between them, and one after each line of tokens.

        At the published tile size: (rows * columns + 1) * 144 + 1 + (rows + 1) * 12.
        """
        rows, columns = self.tile_grid(width, height, num_crops)
        return (rows * columns + 1) * self.num_img_tokens + 1 + (rows + 1) * math.isqrt(self.num_img_tokens)

    def preprocess(self, images, num_crops=None, return_tensors=None, **kwargs):
        """A BatchFeature of n images (PIL, arrays or tensors), with `num_img_tokens`: n numbers.

        `pixel_values`: (n, 1 + num_crops, 3, height, width) float32: the overview, the tiles row by row, then zeros.
        `image_sizes`: (n, 2), height and width in pixels that the tiles cover together.
        """
        num_crops = self._most_tiles(num_crops)
        images = [to_pil_image(image).convert("RGB") for image in make_flat_list_of_images(self.fetch_images(images))]
        pixels, sizes = zip(*(self._tiles(image, num_crops) for image in images), strict=True)
        tokens = [self.count_tokens(*image.size, num_crops) for image in images]
        data = {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor(sizes), "num_img_tokens": tokens}
        return BatchFeature(data, tensor_type=return_tensors)

    def _most_tiles(self, num_crops):
        num_crops = self.num_crops if num_crops is None else num_crops
        if not isinstance(num_crops, int) or num_crops < 1:
            raise ValueError(f"num_crops={num_crops!r}: a whole number of tiles, 1 or more")
        return num_crops

    def arrange(self, image, num_crops=None):
        """The image as the tiles cover it: resized, with white bars where it does not fill them. PIL to PIL."""
        side = self.size["height"]
        grid = self.tile_grid(*image.size, num_crops)
        portrait = image.width < image.height
        ratio = max(image.size) / min(image.size)
        size = (max(grid) * side, self._shorter_side(max(grid), ratio))
        if portrait:  # resized lying, as in training: on its side it would be rounded differently
            image = image.transpose(Image.Transpose.TRANSPOSE)
        canvas = Image.new("RGB", (size[0], min(grid) * side), "white")
        canvas.paste(image.resize(size, Image.Resampling.BILINEAR), (0, (canvas.height - size[1]) // 2))
        return canvas.transpose(Image.Transpose.TRANSPOSE) if portrait else canvas

    def _tiles(self, image, num_crops):
        """(pixels of the overview and the tiles, padded with zeros; the height and width they cover)."""
        side = self.size["height"]
        canvas = np.asarray(self.arrange(image, num_crops), dtype=np.float32) / 255
        canvas = (canvas - np.float32(self.image_mean)) / np.float32(self.image_std)
        whole = torch.from_numpy(canvas).permute(2, 0, 1)
        overview = interpolate(whole[None], size=(side, side), mode="bicubic", align_corners=False)
        rows, columns = (length // side for length in whole.shape[1:])
        tiles = whole.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        pixels = torch.zeros(1 + num_crops, 3, side, side)
        pixels[: 1 + len(tiles)] = torch.cat([overview, tiles])
        return pixels, tuple(whole.shape[1:])
