"""Addresses with a password or a signature in them (PW) that are none, in the ways that people write them."""

from __future__ import annotations

MALFORMED = {
    "password": "http://me:PW@h.example/x.jpg",
    "token as user": "https://PW@h.example/x.jpg",
    "password with a slash": "http://me:a/PW@h.example/x.jpg",
    "password with an at": "http://me:a@PW@h.example/x.jpg",
    "password with a question mark": "http://me:a?PW@h.example/x.jpg",
    "password with a hash": "http://me:a#PW@h.example/x.jpg",
    "password and one slash": "http:/me:PW@h.example/x.jpg",
    "password and no slash": "http:me:PW@h.example/x.jpg",
    "password and three slashes": "http:///me:PW@h.example/x.jpg",
    "password and backslashes": "http:\\\\me:PW@h.example\\x.jpg",
    "password and no scheme": "me:PW@h.example/x.jpg",
    "password, no scheme, a slash": "me:a/PW@h.example/x.jpg",
    "password behind two slashes": "//me:PW@h.example/x.jpg",
    "password in brackets": "http://[me:PW@h.example/x.jpg",
    "password, escaped at": "http://me:PW%40h.example/x.jpg",
    "password, wide at": "http://me:PW\uff20h.example/x.jpg",
    "password and a space": "ht tp://me:PW@h.example/x.jpg",
    "password and a tab": "http://me:\tPW@h.example/x.jpg",
    "password for a port": "http://h.example:PW/x.jpg",
    "another scheme": "sftp://me:PW@h.example/x.jpg",
    "query with a space": "https://h.example/a b.jpg?sig=PW",
    "query and no scheme": "h.example/x.jpg?sig=PW",
    "query and no host": "https:///x.jpg?sig=PW",
    "query behind a bad port": "https://h.example:0/x.jpg?sig=PW",
    "query behind a hash": "https:// h.example/x.jpg#a?sig=PW",
    "query in capitals": "HTTPS:/h.example/x.jpg?SIG=PW",
    "query of a file": "file:///etc/x.jpg?sig=PW",
    "query of a bucket": "s3://bucket/x.jpg?sig=PW",
}
