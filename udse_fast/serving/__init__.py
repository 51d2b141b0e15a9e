"""`udse-fast serve`: streams of one Enhancer behind websockets, computed together.

A connection (`session`) puts what its client sends into an `inbox`; the `batcher` takes what is there of all
connections and enhances it as one batch; `server` lets clients in, and shows the page, the health and the metrics.
"""
