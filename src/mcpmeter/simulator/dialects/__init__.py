"""One file a dialect: what its requests ask for, and what its answers look like. No input or output here."""
