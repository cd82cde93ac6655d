"""Solvers as tables: `schedule` and `grid` say which noise levels, a file per family says which
coefficients, `table` applies them, `schedulers` carries the familiar class names."""
