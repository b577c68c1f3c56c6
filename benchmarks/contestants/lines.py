"""Writes so many megabytes of text lines of 100 bytes as fast as it may."""

import os
import sys

block = b"".join(b"%099d\n" % number for number in range(1000))
for _ in range(int(sys.argv[1]) * 10):
    left = memoryview(block)
    while left:
        left = left[os.write(1, left) :]
