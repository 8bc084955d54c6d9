"""The vendors: error formats, response headers and the place of the API key. Knows no dialect and no fault."""
