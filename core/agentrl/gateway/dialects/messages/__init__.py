"""The dialect of the Messages API: ``dialect`` serves it, ``request`` reads, ``events`` streams, ``blocks`` translates."""
