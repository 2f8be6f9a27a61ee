"""The second in which the command imports."""

import sys

import pytest

from megatron_dpop.__main__ import main

IMPORTED = "megatron_dpop.commands.main"


class CtrlC:
    """Ctrl-C while that module is imported."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == IMPORTED:
            raise KeyboardInterrupt


def test_ctrl_c_while_importing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, IMPORTED, raising=False)
    monkeypatch.setattr(sys, "meta_path", [CtrlC(), *sys.meta_path])
    assert main() == 130
    assert capsys.readouterr().err == "megatron-dpop: interrupted\n"
