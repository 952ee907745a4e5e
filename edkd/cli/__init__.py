"""The two commands, launch.py and edkd: parsing and printing only."""
