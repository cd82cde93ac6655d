# A third of the time of a check of types went into binding the real one's list of all its models,
# and nothing here uses more of its types than this.
from typing import Any

def __getattr__(name: str) -> Any: ...
