"""LoRA and its family in files: names, kinds, reading, writing."""
