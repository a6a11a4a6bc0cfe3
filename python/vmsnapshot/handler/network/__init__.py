"""What the handler sends and receives, outside the window.

background      the event loop on which all of it runs, beside the worker's main thread
proxies         which HTTP proxy is used for a blob
connections     the two of them, with the host's address: what a worker reaches others with
host            PreSnapshot, and what DoSnapshot sends and answers
guest           what comes before and after the requests that the engine sends to the blobs
blob_writer     writes one blob
uploads         the status and log blobs of one job
"""
