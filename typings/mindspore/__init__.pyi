# MindSpore wants numpy 1 and is not in the environment types are checked in; without this file
# pyright would take underdraw/backends/mindspore.py for it.
from typing import Any

def __getattr__(name: str) -> Any: ...
