"""The dialect of the Messages API: ``dialect`` serves it, ``request`` reads, ``blocks`` translates, ``events`` tell."""
