"""One small pipeline per module; a test that changes one makes its own."""

import pytest
from pipelines import tiny


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()
