"""Event loops of our own: their time stands still while the process is paused, and no thread holds them up."""
