"""Jobs on the client: finding pairs, reading and writing pictures, showing results."""
