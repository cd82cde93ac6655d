"""How long this machine takes: engines beside each other and beside others, in turns of one run.

`underdraw bench` and the scripts in `benchmarks/` are made of it. It needs PyTorch.
"""
