"""Model families as plain data: what a checkpoint's config says of the model."""

from dpop_base.architectures.architecture import Architecture, RopeScaling
from dpop_base.architectures.read import read_architecture

__all__ = ["Architecture", "RopeScaling", "read_architecture"]
