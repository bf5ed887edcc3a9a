"""Images with text: conversations, captions, shards, and sets that need no files."""
