"""The sizes of a convolution along its spatial axes, and of its batch and channels."""

from typing import NamedTuple

#: For each array, the two from which it is computed, in the order of the operands; all have a leading axis of groups.
OPERANDS = {"output": ("image", "kernel"), "image": ("kernel", "output"), "kernel": ("image", "output")}


class ConvSpec(NamedTuple):
    """Sizes of image, window and output along the spatial axes, and how the window moves over the image."""

    image: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    holes: tuple[int, ...]  # lhs_dilation
    dilation: tuple[int, ...]  # rhs_dilation
    output: tuple[int, ...]


class Sizes(NamedTuple):
    """Sizes of a convolution's batch and channels, which its `ConvSpec` leaves open."""

    groups: int
    channels: int
    filters: int
    pixels: int  # of the output, all examples of a group together
