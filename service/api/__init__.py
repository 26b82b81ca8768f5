"""The REST API of `laminar serve`: jobs over HTTP, for the command line, programs and browsers."""
