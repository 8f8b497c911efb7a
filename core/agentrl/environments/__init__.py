"""Environments: interpreters in which plugins live that cannot be installed beside the others."""
