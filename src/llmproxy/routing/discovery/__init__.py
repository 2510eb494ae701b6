"""Which servers there are, where that changes: names, services, files, this machine."""
