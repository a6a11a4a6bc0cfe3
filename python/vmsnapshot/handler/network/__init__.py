"""Sends and receives everything outside the window.

background      the event loop for all of it, in a thread beside the worker's main thread
proxies         chooses the HTTP proxy for a blob
lenient_heads   passes over what is odd in the heads of answers
causes          says in words why a connection failed
connections     the event loop, the proxies and the host's address in one value
host            calls PreSnapshot, builds DoSnapshot and reads its answer
guest           asks for encryption settings, and reports on each disk from the engine's results
blob_writer     writes one blob
uploads         writes the status blob and the log blob of one job
"""
