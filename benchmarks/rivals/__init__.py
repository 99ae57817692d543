"""Other libraries' meta-steps, at their best; README.md in this folder says how to install each."""

NAMES = ("torch_func", "higher_loop", "torchopt_loop", "learn2learn_loop")
