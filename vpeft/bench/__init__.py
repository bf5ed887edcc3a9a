"""What methods cost on one machine: step time, memory, inference, compilation, operations and bytes.

cases.py        what is compared: settings of our methods, and Hugging Face peft's on the same timm model
step.py         one training step in its three parts
measure.py      the four measures of a case; each alone, so that one which needs a quiet machine can wait for it
turns.py        rounds in which all take turns, and ratios of what was measured in the same round
process.py      fresh processes, and the most that tensors held at a time
record.py       the file: what was measured, when, on what, under which versions
limits.py       how far a step is from what its operations and bytes allow
tables.py       Markdown; picture.py the drawing; pages.py writes both into the documentation
curves.py       growth along image size, tokens, batch, depth, prompts and rank, and what theory expects
epochs.py       an epoch of the linear probe with cached features and without
"""
