"""How does a network in another program get weights? Over HTTP: `mcdi serve`, and client.py on the other side."""
