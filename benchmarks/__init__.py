"""Programs that measure aiopool, and that try to break it."""
