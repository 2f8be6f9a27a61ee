"""What a kind of input is: good ones made once, one of them changed, and the command that reads it."""

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random


class Kind(ABC):
    """`folder` holds good inputs; each try works on a copy."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Makes the good inputs in `folder`."""

    @abstractmethod
    def attempt(self, draw: Random, work: Path) -> tuple[str, list[str]]:
        """Puts a changed input into the empty folder `work`; which command reads it, and its words."""

    def copied(self, name: str, work: Path) -> Path:
        return Path(shutil.copytree(self.folder / name, work / name, symlinks=True))
