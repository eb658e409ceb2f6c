"""In tests of operators, memory that nobody has written is NaN."""

import pytest
import torch


@pytest.fixture(autouse=True)
def new_memory_is_nan(monkeypatch):
    def filled(make):
        def made(*args, **words):
            new = make(*args, **words)
            return new.fill_(float("nan")) if new.is_floating_point() and not new.is_meta else new

        return made

    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty"), (torch, "empty_like")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
