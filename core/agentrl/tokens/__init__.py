"""Token ids: the tree that records them, and the renderer between them and messages."""
