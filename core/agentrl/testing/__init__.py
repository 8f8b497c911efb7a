"""Conformance suites that plugin authors subclass."""
