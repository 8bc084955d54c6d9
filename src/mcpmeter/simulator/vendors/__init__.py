"""What the APIs of one vendor share: the shape of errors, the headers of every answer, where a key is given."""
