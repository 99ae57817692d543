"""Other libraries' meta-steps, at their best; README.md in this folder says how to install each."""
