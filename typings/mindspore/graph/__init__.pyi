from typing import Any

jit_context: Any
jit_trace: Any
