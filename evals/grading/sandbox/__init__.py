"""Running untrusted programs: what is isolated, and how that is shown to hold."""
