"""Files from outside, damaged and made up: whatever the bytes, a reader gives a value or one sentence."""
