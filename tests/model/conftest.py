"""Networks of tests are small; here their layers run as the operators that large ones take."""

import pytest

from mvit_video.model.ops import linear


@pytest.fixture(autouse=True)
def operators_for_small_inputs_too(request, monkeypatch):
    if "plain_if_small" not in request.fixturenames:
        monkeypatch.setattr(linear, "SMALL", 0)


@pytest.fixture
def plain_if_small():
    """Asked for by tests of what users' small networks do."""
