"""Documents -> tokens -> indexed store -> views (order, split, blend) -> sampler -> batches."""
