"""Words: text that a bundle's model generates about a wafer, without torch. Needs the extra ``[words]``."""
