"""The picture's tiles as lines of tokens: what stands between CLIP and the language model."""

import torch
from torch import nn
from transformers import CLIPVisionModel

from vlmhelpers.families.towers import no_grad_if_frozen


class Phi3VImageEmbedding(nn.Module):
    """Tiles become tokens: CLIP's last but one layer, 2 x 2 patches merged, a separator after each line of them."""

    def __init__(self, config):
        super().__init__()
        width = 4 * config.vision_config.hidden_size
        self.img_processor = CLIPVisionModel._from_config(config.vision_config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))  # between tiles and overview
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))  # after each line
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pixel_values, image_sizes):
        """The tokens of all pictures, one after the other: (tokens, hidden size of the language model).

        pixel_values: (n, 1 + tiles, 3, side, side), image_sizes: (n, 2), as the image processor gives them.
        """
        side = pixel_values.shape[-1]
        grids = [(height // side, width // side) for height, width in image_sizes.tolist()]
        used = [tiles[: 1 + rows * columns] for tiles, (rows, columns) in zip(pixel_values, grids, strict=True)]
        patches = self._merged_patches(torch.cat(used)).split([len(tiles) for tiles in used])
        pictures = [self._lines(of_one, *grid) for of_one, grid in zip(patches, grids, strict=True)]
        return self.img_projection(torch.cat(pictures))

    def _merged_patches(self, tiles):
        """(n, 3, side, side) pixels -> (n, m, m, 4 * width of CLIP): neighbours beside each other, row by row."""
        hidden = self._clip(tiles.to(self.glb_GN.dtype))[:, 1:]  # without the class token
        m = int(hidden.shape[1] ** 0.5) // 2
        hidden = hidden.view(len(hidden), m, 2, m, 2, -1).transpose(2, 3)
        return hidden.reshape(len(hidden), m, m, -1)

    def _clip(self, pixels):
        """CLIP's hidden states before its last layer; no graph is kept where nothing in it is trained."""
        clip = self.img_processor
        with no_grad_if_frozen(clip):
            hidden = clip.pre_layrnorm(clip.embeddings(pixels))
            for layer in clip.encoder.layers[:-1]:
                hidden = layer(hidden, attention_mask=None)
        return hidden

    def _lines(self, patches, rows, columns):
        """The overview and the tiles of one picture -> its tokens before the projection, (tokens, width)."""
        overview, tiles = patches[0], patches[1:]
        m, width = overview.shape[1:]
        whole = tiles.view(rows, columns, m, m, width).transpose(1, 2).reshape(rows * m, columns * m, width)
        return torch.cat([self._with_breaks(whole), self.glb_GN[0], self._with_breaks(overview)])

    def _with_breaks(self, grid):
        """(lines, tokens per line, width) -> (tokens, width), with the separator after each line."""
        breaks = self.sub_GN[0].expand(len(grid), 1, -1)
        return torch.cat([grid, breaks], dim=1).flatten(0, 1)
