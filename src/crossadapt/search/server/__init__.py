"""The HTTP server: search, items, thumbnails, files, collections, metrics, and the search page."""
