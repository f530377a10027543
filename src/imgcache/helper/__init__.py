"""The program that runs on hosts: standard library only, Python 3.6 syntax, imports nothing of ours.

The controller sends these files as text (``transport/launch.py``); it never imports them.
"""
