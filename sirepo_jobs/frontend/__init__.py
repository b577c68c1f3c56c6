"""The front end: the HTTP door for people and programs (design 4 and 8).

It authenticates, authorises, checks and forwards each request as one request to the supervisor, and
keeps nothing.
"""
