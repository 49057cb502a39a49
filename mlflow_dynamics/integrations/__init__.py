"""One thin module per training framework, imported only when that framework is used."""
