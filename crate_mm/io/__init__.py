"""Files, log lines, and untrusted text."""
