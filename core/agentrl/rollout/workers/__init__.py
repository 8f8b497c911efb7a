"""The parent's side of worker processes: starting and killing them, their output, and who runs where."""
