"""Where bytes come from when they are not on a local disk: stores behind URLs, and the cache of what was fetched."""
