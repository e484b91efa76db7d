"""Keys, certificates and kits: who may take part in a federation."""
