"""A job supervisor for science gateways and HPC groups."""

__version__ = "0.1.0"
