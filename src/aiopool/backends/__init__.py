"""What runs the calls, behind the protocol in `aiopool.backends.base`."""
