"""Who may call: keys and their teams, as pure decisions."""
