"""What does each kind of source hold? One file a kind."""
