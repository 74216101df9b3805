"""The version, in one place: the wheel, plans of a run and `edgeprune --version` read it here."""

__version__ = "0.1.0"
