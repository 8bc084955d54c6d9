"""The vendors: error formats, response headers and the place of the API key."""
