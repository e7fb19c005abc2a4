"""The finished clip: read for what it is, then handed over."""
