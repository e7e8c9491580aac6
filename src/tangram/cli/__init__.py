"""The commands: they parse, call and print, and decide nothing."""
