"""What tests take for granted, wherever they are started."""

import signal

# Who is started in the background by a shell ignores Ctrl-C, and so does all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
