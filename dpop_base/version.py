"""Which version of the project this is."""

from importlib import metadata


def project_version() -> str:
    """Returns the installed package's version; "unknown" in a source tree that nobody installed."""
    try:
        return metadata.version("megatron-dpop")
    except metadata.PackageNotFoundError:
        return "unknown"
