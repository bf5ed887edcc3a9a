"""BLIP-2's first stage: a Q-Former learns from image-text pairs, without a language model."""
