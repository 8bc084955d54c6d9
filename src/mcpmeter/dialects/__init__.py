"""Dialects: each is one pure file, bytes in, numbers out. No input or output happens here."""
