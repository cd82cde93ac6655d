"""Training: one loop, a task per network, and the recipe of the scenes family.

- `loop.train(task, TrainingConfig(...), folder)` trains anything that is a `loop.Task`;
- `autoencoder`, `text_to_image`, `text_tower`, `clip`, `grounding`, `structure` hold the tasks, for
  small networks and for real checkpoints alike;
- `data` holds the examples: rendered scenes, or a folder of captioned images;
- `recipes.train_stage` trains the family shipped as `underdraw/scenes`.

Needs PyTorch. Several processes (`torchrun`) share the work of each step.
"""
