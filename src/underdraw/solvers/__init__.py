"""Solvers as tables: `schedule` says which noise levels there are, a file per family says which
coefficients, `table` applies them, `schedulers` carries the familiar class names."""
