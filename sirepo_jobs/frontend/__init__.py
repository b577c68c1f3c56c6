"""The front end: the HTTP door for people and programs (design 4 and 8).

It authenticates, authorises, checks and forwards each request as one request to the supervisor, and
keeps nothing. This file stays empty of imports: clients read `rootdir` and must not pay for Tornado.
"""
