"""What a convolution is: its form, and the sizes of its batch and channels."""

from typing import NamedTuple

#: The two arrays that make the third, in the order of the operands; all with a leading axis of groups.
OPERANDS = {"output": ("image", "kernel"), "image": ("kernel", "output"), "kernel": ("image", "output")}


class Form(NamedTuple):
    """Sizes of image, window and output along the spatial axes, and how the window moves over the image."""

    image: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    holes: tuple[int, ...]  # lhs_dilation
    dilation: tuple[int, ...]  # rhs_dilation
    output: tuple[int, ...]


class Sizes(NamedTuple):
    """Sizes of a convolution's batch and channels, which its `Form` leaves open."""

    groups: int
    channels: int
    filters: int
    pixels: int  # of the output, all examples of a group together
