"""The dialect of the Responses API: ``dialect`` serves it, ``request`` reads, ``answer`` writes, ``store`` keeps."""
