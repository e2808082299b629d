"""Files, log lines, and text from outside."""
