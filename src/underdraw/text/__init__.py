"""From words to token ids: CLIP's tokenizer, prompt weights, prompts of any length."""
