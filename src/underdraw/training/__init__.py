"""Training: one loop, a task per network, and the recipe of the scenes family.

- `loop.train(task, TrainingConfig(...), folder)` trains anything that is a `loop.Task`;
- `autoencoder`, `text_to_image`, `text_tower`, `clip`, `grounding`, `structure`, `subject_encoder`,
  `subjects`, `subject_tuning` hold the tasks, for small networks and for real checkpoints alike;
- `adapters` trains LoRAs, words and subjects beside a checkpoint, on pictures of one's own;
- `data` holds the examples: rendered scenes, or a folder of captioned images;
- `scenes_recipe` says what the family shipped as `underdraw/scenes` is, `recipes.train_stage`
  trains it.

Needs PyTorch. Several processes (`torchrun`) share the work of each step.
"""
