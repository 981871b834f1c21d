"""One run from raw text to datasets: workers, outputs, journal, progress, shards (see `preprocess.preprocess`)."""
