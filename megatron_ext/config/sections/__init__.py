"""The settings, one file per section; a new knob is one field in one of these files."""
