"""How agents are launched: one module per driver."""
