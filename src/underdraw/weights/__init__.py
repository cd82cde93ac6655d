"""Everything between files and parameter trees, without any framework.

`hub.resolve` gives a folder, `folders.open_component` its config and tensors, `match.match_network`
the tensors under the names a network asks for; `single_file` reads and writes the original
one-file checkpoints, `save` writes. Tensors are `files.StoredTensor`: on disk until asked for.
"""
