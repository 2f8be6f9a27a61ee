"""What the project's HTML pages share: each is one file that needs nothing beside itself, in light, dark and print."""

from megatron_dpop.pages.page import colour, render_page, write_page

__all__ = ["colour", "render_page", "write_page"]
