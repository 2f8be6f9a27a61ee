"""What the project's HTML pages share: each is one file that needs nothing beside itself, in light, dark and print."""

from megatron_dpop.pages.colours import REFERENCE_COLOUR, series_colours
from megatron_dpop.pages.page import render_page, write_page

__all__ = ["REFERENCE_COLOUR", "render_page", "series_colours", "write_page"]
