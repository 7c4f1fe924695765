"""How is each kind of dataset read? One file per kind."""
