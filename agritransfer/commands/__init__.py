"""The commands of `python -m agritransfer`, one a file; what they do is done by the files above them."""
