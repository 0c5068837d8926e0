"""What the libraries' model zoos import beside PyTorch."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def torchvision_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for torchvision, of which zoos import the download of weights alone; it ties torch to one exact build."""

    def load_state_dict_from_url(*_: Any, **__: Any) -> Any:
        raise AssertionError("tests download nothing")

    utils: Any = ModuleType("torchvision.models.utils")
    utils.load_state_dict_from_url = load_state_dict_from_url
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.models.utils", utils)
