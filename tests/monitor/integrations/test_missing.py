"""Without its library a callback is one message with the command that installs it."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize("library", ["transformers", "lightning", "accelerate"])
def test_a_missing_library_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in (library, f"pytorch_{library}") or name == f"monitor.integrations.{library}":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # as Python marks what cannot be imported
    monkeypatch.setitem(sys.modules, f"pytorch_{library}", None)
    with pytest.raises(ImportError, match=rf"needs the package {library} .*pip install 'gradiometer\[{library}\]'"):
        importlib.import_module(f"monitor.integrations.{library}")
