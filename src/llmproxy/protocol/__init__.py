"""What is known about the wire. No sockets, no loop, no clock in this folder."""
