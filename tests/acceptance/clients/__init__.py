"""Real clients against the gateway: a scripted model plays a tool loop through each, and the tree holds one chain."""
