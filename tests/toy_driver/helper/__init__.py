"""What the toy driver sends to hosts: Python 3.6 syntax, standard library only, as imgcache's own."""
